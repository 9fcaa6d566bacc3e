"""`visipruner run`, `eval` and `analyze` on tiny checkpoints of types that nobody described, with stock processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

import visipruner as vp
from tests.families.prompts import IMAGE
from tests.families.stock import STOCK, UNREAD, WITHOUT, save
from tools.families.cells import kinds
from visipruner.adapters import adapter_of
from visipruner.cli.app import app
from visipruner.engine.host import Host
from visipruner.models import processors

QUESTION = "w5 w6 w7"
FASTV = "fastv:keep_tokens=3"
EACH_RUN = ("gemma4",)
each_stock = pytest.mark.parametrize(
    "kind", [kind if kind in EACH_RUN else pytest.param(kind, marks=pytest.mark.every_type) for kind in STOCK]
)
pytestmark = pytest.mark.filterwarnings("ignore:Models of type")


def test_every_type_has_a_processor_or_a_reason() -> None:
    assert set(STOCK) | set(WITHOUT) == set(kinds())
    assert not set(STOCK) & set(WITHOUT)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Questions about a photograph."""
    Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(tmp_path / "photo.png")
    lines = [{"image": "photo.png", "question": f"w{number} w6", "answer": "w7"} for number in range(4, 8)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{result.output}{result.stderr}{result.exception!r}"
    return result.stdout


@each_stock
def test_run_eval_and_analyze(kind: str, pairs: Path, tmp_path: Path) -> None:
    folder = save(kind, tmp_path / "model")
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    host = Host.of(model, adapter_of(model))
    at = min(set(range(len(host.layers))) - host.states) + 1
    named = ["--model", str(folder), "--attn", "eager"]
    method = f"{FASTV},layer={at}"
    words = ["--max-new-tokens", "3"]

    stdout = _invoke(
        "run", str(pairs.parent / "photo.png"), "-q", QUESTION, *named, "--method", method, *words, "--repeats", "1",
        "--compare", "--json",
    )  # fmt: skip
    [answer] = json.loads(stdout)["answers"]
    processor = processors.load(str(folder), model.config.model_type, local_files_only=True)
    content = [{"type": "image", "image": Image.open(pairs.parent / "photo.png")}, {"type": "text", "text": QUESTION}]
    asked = {"return_mm_token_type_ids": True} if kind == "cosmos3_edge" else {}  # what its model cannot do without
    inputs: Any = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=asked,
    )

    def said() -> str:
        output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return str(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())

    assert answer["dense"]["text"] == said()
    with vp.attach(model, vp.FastV(keep_tokens=3, layer=at)):
        assert answer["answer"] == said()
    assert answer["visual_tokens"] == int((inputs["input_ids"] == IMAGE).sum()) > 3
    assert answer["kept_tokens"] == 3

    _invoke("eval", *named, "--data", str(pairs), "--method", method, *words, "--out", str(tmp_path / "eval"))
    assert (tmp_path / "eval" / "results.json").exists()

    out = ("--out", str(tmp_path / "analysis"))
    few = ("--only", "influence", "--samples", "2", "--checked", "1")
    result = CliRunner().invoke(app, ["analyze", *named, "--data", str(pairs), *few, *words, *out])
    unread = "have no attention edges to look at" if host.states else UNREAD.get(kind)
    if unread:
        assert result.exit_code == 1
        assert unread in result.stderr
    else:
        assert result.exit_code == 0, f"{result.output}{result.stderr}"
        assert (tmp_path / "analysis" / "report.html").exists()
