"""`visipruner run`, `eval` and `analyze` on tiny checkpoints of types that nobody described, with stock processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from typer.testing import CliRunner

import visipruner as vp
from tests.families.commands import QUESTION, eval_and_analyze, invoke, photographed
from tests.families.kinds import built_kind
from tests.families.prompts import IMAGE
from tests.families.stock import FAILING, NO_PROCESSOR, STOCK, TORCHVISION, UNREAD, WITHOUT, processor_of, save
from tools.families.cells import kinds
from visipruner.adapters import adapter_of
from visipruner.chat import message_inputs
from visipruner.cli.app import app
from visipruner.engine.host import Host
from visipruner.models import processors

pytestmark = pytest.mark.filterwarnings("ignore:Models of type")


def each_stock(*of_each_run: str) -> pytest.MarkDecorator:
    """Every type with a processor; only `of_each_run` without `make families-test`."""
    return pytest.mark.parametrize(
        "kind", [kind if kind in of_each_run else pytest.param(kind, marks=pytest.mark.every_type) for kind in STOCK]
    )


def test_every_type_has_a_processor_or_a_reason() -> None:
    assert set(STOCK) | set(WITHOUT) == set(kinds())
    assert not set(STOCK) & set(WITHOUT)
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    assert f"of every family and of {len(STOCK)} of the" in page
    assert f"of each of the {len(WITHOUT)} others why not" in page


@pytest.mark.parametrize(
    ("kind", "error"), [("fuyu", r"transpose\(\) takes 2 positional arguments"), ("got_ocr2", "Nested images are only")]
)
def test_reasons_of_processors_that_fail(kind: str, error: str) -> None:
    """A version of transformers in which they do not lets the type join the others."""
    content = [{"type": "image", "image": Image.new("RGB", (32, 32))}, {"type": "text", "text": QUESTION}]
    with pytest.raises(vp.VisiPrunerError, match=f"Processor makes no prompt of this chat .*{error}.*vp.attach"):
        message_inputs(None, processor_of(kind), [{"role": "user", "content": content}])
    assert kind in WITHOUT
    assert kind in FAILING


@pytest.mark.parametrize("kind", [kind for kind, why in WITHOUT.items() if why in (NO_PROCESSOR, TORCHVISION)])
def test_reasons_of_processors_that_cannot_be_made(kind: str) -> None:
    """A version of transformers with one for Pillow, or with a processor, lets the type join the others."""
    assert (kind in PROCESSOR_MAPPING_NAMES) == (WITHOUT[kind] == TORCHVISION)
    assert kind not in PROCESSOR_MAPPING_NAMES or set(IMAGE_PROCESSOR_MAPPING_NAMES[kind]) == {"torchvision"}


def test_a_class_that_takes_no_chat_template_has_that_of_its_folder(tmp_path: Path) -> None:
    made = processor_of("chameleon")
    made.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is None, "transformers gives it one now"
    loaded = processors.load(str(tmp_path), "chameleon", local_files_only=True)
    assert loaded.chat_template == made.chat_template


@each_stock("cosmos3_edge", "pp_chart2table")
def test_full_check(kind: str) -> None:
    """`visipruner check --full`. A processor that wants a picture with every text is asked for no text alone."""
    report = vp.check(built_kind(kind), processor_of(kind), keep=False)
    assert report.passed, str(report)
    left_out = [finding.check for finding in report.findings if finding.state == "left out"]
    assert left_out == (["text only"] if kind == "pp_chart2table" else [])


def test_a_type_without_sdpa_is_loaded_with_eager_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIPRUNER_CACHE", str(tmp_path / "cache"))
    folder = save("pp_chart2table", tmp_path / "model")
    result = CliRunner().invoke(app, ["check", "--model", str(folder), "--full"])
    assert result.exit_code == 1
    assert "attends by its own eager function alone; add --attn eager" in result.stderr
    assert "pp_chart2table (full): passes" in invoke("check", "--model", str(folder), "--full", "--attn", "eager")


@each_stock("gemma4")
def test_run_eval_and_analyze(kind: str, tmp_path: Path) -> None:
    folder, photo = save(kind, tmp_path / "model"), photographed(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    host = Host.of(model, adapter_of(model))
    at = min(set(range(len(host.layers))) - host.states) + 1
    method = f"fastv:keep_tokens=3,layer={at}"
    stdout = invoke(
        "run", str(photo), "-q", QUESTION, "--model", str(folder), "--attn", "eager", "--method", method,
        "--max-new-tokens", "3", "--repeats", "1", "--compare", "--json",
    )  # fmt: skip
    [answer] = json.loads(stdout)["answers"]
    processor = processors.load(str(folder), model.config.model_type, local_files_only=True)
    content = [{"type": "image", "image": Image.open(photo)}, {"type": "text", "text": QUESTION}]
    asked = {"return_mm_token_type_ids": True} if kind == "cosmos3_edge" else {}  # what its model cannot do without
    inputs: Any = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=asked,
    )
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, built_kind(kind)(**inputs).logits), "the model lost something"

    def said() -> str:
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return str(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())

    assert answer["dense"]["text"] == said()
    with vp.attach(model, vp.FastV(keep_tokens=3, layer=at)):
        assert answer["answer"] == said()
    assert answer["visual_tokens"] == int((inputs["input_ids"] == IMAGE).sum()) > 3
    assert answer["kept_tokens"] == 3
    unread = "have no attention edges to look at" if host.states else UNREAD.get(kind, "")
    eval_and_analyze(folder, method, tmp_path, unread)
