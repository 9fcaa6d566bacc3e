"""A benchmark of a stranger: a file of its own and nothing else, in this folder or in another package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tests.benchmarks.folders import picture
from visipruner import plugins
from visipruner.errors import VisiPrunerError
from visipruner.evaluation.datasets import names, open_benchmark, registry

ROOT = Path(__file__).parents[2]
[CODE] = re.findall(r"```python\n(from __future__.*?)```", (ROOT / "docs" / "evaluation.md").read_text(), re.S)


@pytest.fixture(autouse=True)
def _looks_anew() -> Iterator[None]:
    registry.kinds.cache_clear()
    yield
    registry.kinds.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "data" / "0.jpg")
    line = {"image": "0.jpg", "question": "How many dots?", "count": 3}
    (tmp_path / "data" / "dots.jsonl").write_text(json.dumps(line))
    return tmp_path / "data"


def _plug_in(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    entry = EntryPoint("dots", value, registry.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == registry.GROUP else [])


def test_the_pages_example_in_another_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dots_benchmark.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    _plug_in(monkeypatch, "dots_benchmark:Dots")
    assert "dots" in names()
    found = open_benchmark(folder)
    assert (found.name, found.samples[0].answers) == ("dots", ("3",))
    assert [found.score({"answers": ["3"]}, answer) for answer in ("three", "4")] == [1, 0]


def test_the_pages_example_in_our_folder(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (copy / "visipruner/evaluation/datasets/dots.py").write_text(CODE)
    code = (
        "from pathlib import Path; from visipruner.evaluation.datasets import open_benchmark; "
        f"print(open_benchmark(Path({str(folder)!r})).title)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(copy)}, check=False
    )
    assert done.stdout.strip() == "Dots", done.stderr


@pytest.mark.parametrize(
    ("value", "told"), [("nowhere:Dots", "cannot be loaded"), ("json:JSONDecoder", "must be a subclass of visipruner")]
)
def test_a_plug_in_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    _plug_in(monkeypatch, value)
    with pytest.raises(VisiPrunerError, match=told):
        names()
