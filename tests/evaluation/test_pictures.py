"""What chart.png and ranking.png say in words: nothing on them is left to be guessed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from visipruner.evaluation import pictures

ROOT = Path(__file__).parents[2]
LONG = "visipruner:shallow_end=0,filter_layer=0,keep_tokens=144,exit_layer=24"


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Of the comparison in docs/comparison: four panels, long names, rows without an interval."""
    found: list[dict[str, Any]] = json.loads((ROOT / "docs/comparison/results.json").read_text())["rows"]
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures instead of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: figures.append(self))
    return figures


def test_the_chart_names_its_band_and_every_whole_setting(
    rows: list[dict[str, Any]], drawn: list[Figure], tmp_path: Path
) -> None:
    two = [{**row, "method": f"fastv:layer={number}"} for number, row in zip((2, 9), rows[1:3], strict=True)]
    pictures.draw_budgets([*rows, *two], tmp_path / "c.png")
    [legend] = drawn[0].legends
    told = {text.get_text().replace("\n", " ").replace(", ", ",") for text in legend.get_texts()}
    assert {"dense", "dense,95 % interval", LONG, "fastv:layer=2", "fastv:layer=9"} <= told
    for panel in drawn[0].axes:
        whiskers = [bars.get_segments() for bars in panel.collections if hasattr(bars, "get_segments")]
        assert sum(map(len, whiskers)) == len(rows) + 1  # all but dense
    assert "95 % interval" in drawn[0].axes[0].get_ylabel()


def test_a_ranking_has_one_panel_a_budget_below_the_other(
    rows: list[dict[str, Any]], drawn: list[Figure], tmp_path: Path
) -> None:
    pictures.draw_ranking(rows, tmp_path / "r.png")
    [figure] = drawn
    assert [panel.get_title("left") for panel in figure.axes] == [
        "settings as given", "50% cut", "70% cut", "85% cut"
    ]  # fmt: skip
    assert len({round(panel.get_position().x0, 3) for panel in figure.axes}) == 1
    assert figure.get_size_inches()[0] <= 9
    assert "In brackets: FLOPs" in figure.get_supxlabel()


def test_a_point_without_an_interval_says_so(rows: list[dict[str, Any]], drawn: list[Figure], tmp_path: Path) -> None:
    pictures.draw_ranking(rows, tmp_path / "r.png")
    without = sum(row["difference"] is not None and row["difference"]["low"] is None for row in rows)
    assert without > 0
    said = [text.get_text() for panel in drawn[0].axes for text in panel.texts]
    hollow = [line for panel in drawn[0].axes for line in panel.lines if line.get_markerfacecolor() == "white"]
    assert said == ["no interval: no image differs"] * without
    assert len(hollow) == without


def test_pictures_are_drawn_anew_from_the_results(tmp_path: Path) -> None:
    for name in ("results.json", "table.md"):
        shutil.copy(ROOT / "docs/comparison" / name, tmp_path)
    table = (tmp_path / "table.md").read_text()
    (tmp_path / "table.md").unlink()
    subprocess.run([sys.executable, "-m", "visipruner.evaluation", str(tmp_path)], check=True)
    assert (tmp_path / "table.md").read_text() == table
    for name in ("chart.png", "ranking.png"):
        assert Image.open(tmp_path / name).size == Image.open(ROOT / "docs/comparison" / name).size
