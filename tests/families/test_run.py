"""`visipruner run` on a saved tiny checkpoint of every family, with its stock processor and a chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import visipruner as vp
from tests.families.checkpoints import PROCESSORS, processor_of, save
from tests.families.commands import QUESTION, eval_and_analyze, photographed
from tests.families.prompts import IMAGE
from tests.families.tried import tries
from tests.families.zoo import FAMILIES, built
from visipruner.cli.app import app
from visipruner.models import processors

# One grid is the whole picture; crops are several, and LLaVA-NeXT's joined crops with newlines are no grid.
DRAWN = set(PROCESSORS) - {"llava-next", "llava-next-video", "llava-onevision", "internvl", "idefics3", "smolvlm"}


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographed(tmp_path_factory.mktemp("photo"))


def each_checkpoint(*of_each_run: str) -> pytest.MarkDecorator:
    """Every family's; only `of_each_run` without `make families-test`."""
    return pytest.mark.parametrize(
        "name",
        [name if name in of_each_run else pytest.param(name, marks=pytest.mark.every_type) for name in PROCESSORS],
    )


@tries("run")
@pytest.mark.parametrize("name", PROCESSORS)
def test_run_answers_as_the_library_does(name: str, tmp_path: Path, photo: Path) -> None:
    if name == "smolvlm":
        pytest.importorskip("num2words", reason="transformers' SmolVLMProcessor needs it")
    folder = save(name, tmp_path / "model")
    settings = ["--set", "shallow_end=2", "--set", "filter_layer=2", "--set", "keep_tokens=3"]
    options = [
        "--attn",
        "eager",
        "--max-new-tokens",
        "3",
        "--compare",
        "--repeats",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(
        app, ["run", str(photo), "-q", QUESTION, "--model", str(folder), *settings, *options, "--json"]
    )
    assert result.exit_code == 0, result.stderr
    [answer] = json.loads(result.stdout)["answers"]

    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    processor = processors.load(str(folder), model.config.model_type, local_files_only=True)
    content = [{"type": "image", "image": Image.open(photo)}, {"type": "text", "text": QUESTION}]
    inputs: Any = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )

    def said() -> str:
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return str(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())

    assert answer["dense"]["text"] == said()
    with vp.attach(model, vp.VisiPruner(shallow_end=2, filter_layer=2, keep_tokens=3)):
        assert answer["answer"] == said()
    assert answer["visual_tokens"] == int((inputs["input_ids"] == IMAGE).sum()) > 3
    assert (answer["kept_tokens"], answer["trigger_layer"]) == (3, 2)
    assert 0 < answer["flops_cut"] < 1
    assert (answer["overlay"] is not None) == (name in DRAWN)


@each_checkpoint("llava")
def test_eval_and_analyze(name: str, tmp_path: Path) -> None:
    photographed(tmp_path)
    eval_and_analyze(save(name, tmp_path / "model"), "fastv:keep_tokens=3,layer=1", tmp_path)


@each_checkpoint("qwen3-vl", "paligemma")
def test_full_check(name: str) -> None:
    """`visipruner check --full`; PaliGemma's processor wants a picture with every text."""
    report = vp.check(built(name, "eager"), processor_of(name), keep=False)
    assert report.passed, str(report)
    left_out = [finding.check for finding in report.findings if finding.state == "left out"]
    assert left_out == (["text only"] if "paligemma" in name else [])


def test_the_package_that_a_processor_needs_is_named(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What transformers holds instead of the package where it is not installed.
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    folder = save("llava", tmp_path / "model")
    built("smolvlm", "eager").save_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**settings, "processor_class": "SmolVLMProcessor"}))
    result = CliRunner().invoke(app, ["run", str(photo), "-q", QUESTION, "--model", str(folder)])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "num2words" in result.stderr.lower()


def test_every_family_is_run() -> None:
    assert set(FAMILIES) == set(PROCESSORS)
