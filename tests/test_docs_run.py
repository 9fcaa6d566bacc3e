"""Every Python block of README and docs runs, on a tiny model, unless a line before it says why it does not here."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

import visipruner as vp
from tests.cli.tiny_llava import save_llava
from tests.test_docs import PAGES, ROOT, commands

LAYERS = 32  # those that the pages' examples name must be there
BLOCK = re.compile(r"(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)```", re.DOTALL)
PROMPT = "user : <image> what is this ? assistant :"
SLOW = ("analysis.md", "evaluation.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """`(why it is not run, code)` of the page's blocks; the first is empty for those that are run."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


RUN = [page for page in PAGES if any(not why for why, _ in blocks(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"), LAYERS)


def prepared(folder: Path, here: Path) -> dict[str, Any]:
    """What the pages take for granted: a model, its processor, a picture, a prompt, and where things are."""
    model, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    picture = Image.effect_noise((60, 60), 90).convert("RGB")
    picture.save(here / "photo.jpg")
    line = {"image": "photo.jpg", "question": "what is this ?", "answer": "a cat"}
    (here / "pairs.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps({**line, 'question': 'where ?'})}\n")
    inputs = processor(images=picture, text=PROMPT, return_tensors="pt")
    batch = {**inputs, "labels": inputs["input_ids"].clone()}
    decoder = model.model.language_model.config
    return {
        "vp": vp,
        "model": model,
        "processor": processor,
        "image": picture,
        "picture": picture,
        "prompt": PROMPT,
        "questions": [PROMPT, PROMPT.replace("what", "where")],
        "inputs": inputs,
        "path": folder,
        "out": here / "out",
        "pruner": vp.FastV(),
        "batches": [batch],
        **text_decoder(decoder),
        "Trainer": Trainer,
        "arguments": TrainingArguments(output_dir=str(here / "trained"), use_cpu=True, report_to=[]),
        "dataset": [batch],
    }


def text_decoder(config: Any) -> dict[str, Any]:
    """A decoder without a tower, given embeddings and told which rows are visual."""
    from transformers import LlamaForCausalLM

    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[:, 2:7] = True
    return {
        "decoder": LlamaForCausalLM(config).eval(),
        "mask": mask,
        "embeddings": torch.randn(1, 9, config.hidden_size),
        "attention_mask": torch.ones(1, 9, dtype=torch.long),
    }


def an_adapter(folder: Path, here: Path) -> None:
    """What examples/peft_finetune.py leaves behind."""
    peft = pytest.importorskip("peft")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(here / "adapter")
    vp.DivPrune(keep_tokens=5).save_pretrained(here / "adapter")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW), id=page.name) for page in RUN]
)
def test_its_python_runs(page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after the other; each finds a fresh model and what the blocks before it have made besides."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    if "adapter/" in page.read_text(encoding="utf-8"):
        an_adapter(folder, tmp_path)
    for number, (why, code) in enumerate(blocks(page), 1):
        if not why:
            names |= prepared(folder, tmp_path)
            code = code.replace('"testbed"', repr(str(folder)))
            exec(compile(code, f"{page.name}, Python block {number}", "exec", dont_inherit=True), names)


def test_what_is_not_run_is_tested_elsewhere() -> None:
    """A block may be left out, with its reason, where it needs what is not here; that list is short and known."""
    left_out = {(page.name, why) for page in PAGES for why, _ in blocks(page) if why}
    assert left_out == {
        (
            "evaluation.md",
            "the tower of the tests' LLaVA knows one size; tests/pruners/test_downsample.py has one that does not mind",
        ),
        ("integrations.md", "it needs the hub; tests/integrations/test_hub.py has a stand-in"),
        ("integrations.md", "it needs VLMEvalKit; tests/integrations/test_vlmevalkit.py has a stand-in"),
        ("methods.md", "it needs a model of videos; tests/pruners/test_videos.py has one"),
        ("testbed.md", "it builds 650 MB twice; packages/testbed/tests loads the model"),
        ("vllm.md", "it needs vLLM; make vllm-test serves models"),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_others_start_what_exists(page: Path) -> None:
    """`make` knows the target, `python` the file, module or code. (tests/test_docs.py parses those of visipruner.)"""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing = []
    for program, *words in commands(page):
        if program == "make":
            missing += [word for word in words if "=" not in word and word not in targets]
        elif Path(program).name == "python" and words[0] == "-c":
            compile(words[1], page.name, "exec")
        elif Path(program).name == "python" and words[0] == "-m":
            missing += [words[1]] * (find_spec(words[1].partition(".")[0]) is None)
        elif Path(program).name == "python":
            missing += [words[0]] * (not (ROOT / words[0]).exists())
    assert missing == [], shlex.join(missing)
