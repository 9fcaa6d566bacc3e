"""Tables as wide as the terminal, and progress that comes to its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from visipruner.cli.console import Status, show_table, told
from visipruner.tables import Table

WIDE = Table(
    ["method", *(f"column {number}" for number in range(12))],
    [[name, *(f"{10 * number:.1f} (9-11)" for number in range(12))] for name in ("dense", "a-name-" * 12)],
    ["What must be known."],
)


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_nothing_is_lost_at_any_width(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    show_table(console, WIDE)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    for number in range(12):
        assert shown.count(f"{10 * number:.1f} (9-11)") >= 2
        assert str(number) in shown
    assert shown.count("a-name-") >= 5
    assert "What must be known." in " ".join(shown.split())


@pytest.mark.parametrize("found", [12, 7, 15])
def test_progress_ends_where_it_should(found: int) -> None:
    status = Status()
    status.console = Console(file=io.StringIO(), width=100)
    assert list(status.over(range(found), 12, "Trying settings")) == list(range(found))
    assert "12/12" in status.console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]


def test_settings_are_told_as_one_would_write_them() -> None:
    assert told(1 / 9) == "0.1111"
    assert told((0, None, True, ["a"])) == "[0, none, true, [a]]"
    parts = [{"method": "divprune", "settings": {"keep_ratio": 1 / 3}}, {"method": "visipruner", "settings": {}}]
    assert told({"method": "composed", "settings": {"parts": parts}}) == "divprune:keep_ratio=0.3333+visipruner"
