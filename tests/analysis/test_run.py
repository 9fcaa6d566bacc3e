"""A whole analysis in one call, as docs/analysis.md shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import visipruner as vp
from tests.analysis.planted import make_blind, pictures, planted
from visipruner.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs/analysis.md"
LAYERS = 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return planted(tmp_path_factory.mktemp("model"), LAYERS, (3, 4))


def example() -> str:
    [code] = [code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "vp.analyze" in code]
    return code


def test_the_example_of_the_docs_runs(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"image": sample.image.name, "question": sample.question} for sample in pictures(tmp_path, 2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {"model": tiny[0], "processor": tiny[1]}
    exec(example(), said)
    found = said["found"]
    assert (tmp_path / "analysis/report.html").exists()
    assert json.loads((tmp_path / "analysis/analysis.json").read_text()) == json.loads(json.dumps(found.document))
    assert found.stages.overall.exit_layer.value == 5
    assert "5.0" in capsys.readouterr().out
    assert found.pruner == found.stages.pruner


def test_what_is_there_is_not_measured_again(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    told = []

    def progress(items: Any, total: int, what: str) -> Any:
        told.append((what, total))
        return items

    samples = pictures(tmp_path, 2)
    first, again = (
        vp.analyze(*tiny, samples, tmp_path / "out", parts=["lens"], count=3, max_new_tokens=1, progress=progress)
        for _ in range(2)
    )
    assert told == [("Analysing samples", 3)] * 2
    assert first.stages is first.pruner is None
    assert again.document["lens"] == first.document["lens"]
    assert again.document["seconds"]["by_part"] == first.document["seconds"]["by_part"]
    with pytest.raises(ConfigError, match="another max_new_tokens"):
        vp.analyze(*tiny, samples, tmp_path / "out", parts=["lens"], max_new_tokens=2)


def test_a_blind_model_is_given_no_settings(tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", LAYERS, (2, 3, 4))
    make_blind(model, range(LAYERS))
    found = vp.analyze(model, processor, pictures(tmp_path), tmp_path / "out", max_new_tokens=1)
    assert not found.document["stages"]["overall"]["needs_image"]
    assert found.pruner is None
    assert not (tmp_path / "out/pruner.json").exists()
    assert "no stages: answers do not depend on the image" in (tmp_path / "out/report.html").read_text()


def test_what_cannot_be_asked(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    samples = pictures(tmp_path, 1)
    for wrong, message in (({"parts": ["nothing"]}, "no part 'nothing'"), ({"metric": "accuracy"}, "needs the right")):
        with pytest.raises(ConfigError, match=message):
            vp.analyze(*tiny, samples, tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
