"""What the commands do, as calls: the examples of the documents run, and give what the commands give."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

import visipruner as vp
from tests.analysis.planted import pictures
from tests.cli.tiny_llava import save_llava
from visipruner.cli.app import app

ROOT = Path(__file__).parents[1]
_TIMES = {
    "seconds",
    "first_token_seconds",
    "prefill_ratio",
    "answer_ratio",
    "selection_share",
    "time_ratio",
    "first_token_ratio",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("model"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    lines = [{"image": s.image.name, "question": s.question, "answer": "cat"} for s in pictures(tmp_path, 2)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _ran(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _untimed(value) for key, value in content.items() if key not in _TIMES}
    return [_untimed(value) for value in content] if isinstance(content, list | tuple) else content


def test_compare_is_eval(folder: Path, data: Path, tmp_path: Path) -> None:
    compared = vp.compare(
        str(folder),
        ["random", "fastv"],
        fixed={"two": vp.FastV(layer=2)},
        data=data,
        max_new_tokens=2,
        out=tmp_path / "a",
    )
    assert compared is not None
    told = _ran(
        "eval", "--model", folder, "--data", data, "--max-new-tokens", 2, "--method", "random", "--method", "fastv",
        "--fixed", "two=fastv:layer=2", "--out", tmp_path / "b",
    )  # fmt: skip
    ours, theirs = (_untimed(json.loads(json.dumps(one))) for one in (compared.document, told))
    for document in (ours, theirs):
        document["methods"]["two"].pop("source")  # a pruner there, a spec here
    assert ours == theirs
    assert compared.table.startswith("| method |")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}


def test_ask_is_run(folder: Path, data: Path) -> None:
    image = data.parent / "0.png"
    settings = {"layer": 1, "keep_tokens": 3}
    asked = vp.ask(str(folder), [image], ["what is this ?"], "fastv", settings, repeats=1, max_new_tokens=2)
    told = _ran(
        "run", image, "-q", "what is this ?", "--model", folder, "--method", "fastv", "--set", "layer=1", "--set",
        "keep_tokens=3", "--compare", "--repeats", 1, "--max-new-tokens", 2,
    )  # fmt: skip
    assert _untimed(json.loads(json.dumps(asked.document))) == _untimed(told)
    assert asked.answers[0].kept_tokens == 3


def test_a_model_that_is_here_already(folder: Path, data: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
    loaded = vp.models.LoadedModel.of(model, AutoProcessor.from_pretrained(folder))
    assert (loaded.name, loaded.num_layers, loaded.dtype) == ("LlavaForConditionalGeneration", 6, "float32")
    ours, named = (
        vp.ask(one, [data.parent / "0.png"], ["what is this ?"], vp.FastV(layer=1), max_new_tokens=2)
        for one in (loaded, str(folder))
    )
    assert ours.answers[0].answer == named.answers[0].answer
    with pytest.raises(vp.VisiPrunerError, match="--data"):
        vp.compare(loaded, ["fastv"])


def test_bench_shape_is_bench() -> None:
    document = vp.speed.bench_shape("tiny", ["fastv"], visual=[16], new_tokens=1, rounds=1, dtype="float32")
    told = _ran(
        "bench", "--shape", "tiny", "--method", "fastv", "--visual", 16, "--new-tokens", 1, "--rounds", 1, "--dtype",
        "float32",
    )  # fmt: skip
    assert document["model"] == told["model"]
    for ours, theirs in zip(document["points"][0]["rows"], told["points"][0]["rows"], strict=True):
        assert {key: ours[key] for key in ("name", "settings", "flops", "kv_bytes", "visual_per_layer")} == {
            key: theirs[key] for key in ("name", "settings", "flops", "kv_bytes", "visual_per_layer")
        }


def test_the_pages_example_runs(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(import visipruner as vp\n.*?)```", page, re.S)
    monkeypatch.chdir(data.parent)
    (data.parent / "photo.jpg").write_bytes((data.parent / "0.png").read_bytes())
    found: dict[str, Any] = {}
    exec(code.replace('"testbed"', repr(str(folder))), found)
    assert [row["method"] for row in found["compared"].rows] == ["dense", "mine", "fastv"]
    assert found["asked"].answers[0].dense is not None
    assert (data.parent / "results" / "results.json").exists()
    assert found["speed"]["points"][0]["visual"] == 64
