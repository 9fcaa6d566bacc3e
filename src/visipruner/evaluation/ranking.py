"""Methods ranked by what they lose, a panel a budget: the picture to choose a method by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from visipruner.evaluation.chart import spaced
from visipruner.evaluation.runner import DENSE
from visipruner.evaluation.significance import LEVEL
from visipruner.files import write_atomic

UNMATCHED = "settings as given"
_SURE, _UNSURE = "#0072B2", "0.55"
_WIDTH, _LINE = 9.0, 0.21  # inches: a page is read 900 pixels wide
_NO_INTERVAL = "no interval: no image differs"
Row = dict[str, Any]


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: points lost or won against dense (or answers changed) with 95 % intervals, the best on top, one
    panel a budget below the other.

    Names that end in "@ 50%" share a panel. Differences that are not significant after Holm's correction are grey. A
    row without an interval is a hollow mark, and says so.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] != DENSE:
            name, mark, budget = row["method"].rpartition(" @ ")
            panels.setdefault(f"{budget} cut" if mark else UNMATCHED, []).append({**row, "label": name or budget})
    if not panels:
        return
    is_known = all(row["difference"] for members in panels.values() for row in members)
    lines = [sum(_label(row).count("\n") + 1 for row in members) for members in panels.values()]
    figure = Figure(figsize=(_WIDTH, 1 + sum(0.6 + _LINE * count for count in lines)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[2 + count for count in lines])
    for panel, (title, members) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(panel, title, members, is_known)
    axes[-1, 0].set_xlabel("points of accuracy against dense" if is_known else "same answer as dense, %")
    color = f"blue: significant, Holm's p is at most {LEVEL}; grey: not.  " if is_known else ""
    figure.supxlabel(f"{color}In brackets: FLOPs of the decoder that were cut.", fontsize="small", color="0.3")
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def _draw_panel(panel: Any, title: str, members: Sequence[Row], is_known: bool) -> None:
    told = sorted(((_told(row, is_known), row) for row in members), key=lambda pair: pair[0]["value"])
    places, place = [], 0.0
    for found, row in told:
        height = _label(row).count("\n") + 1
        place += height / 2
        _draw_row(panel, found, place, _SURE if row["is_significant"] or not is_known else _UNSURE)
        places.append(place)
        place += height / 2
    panel.set_yticks(places, [_label(row) for _, row in told], fontsize="small")
    panel.set_title(title, fontsize="medium", loc="left")
    panel.axvline(0 if is_known else 100, color="0.4", linestyle="--", linewidth=1)
    panel.set_ylim(-0.3, place + 0.3)
    panel.grid(axis="x", alpha=0.3)
    panel.tick_params(labelbottom=True)


def _draw_row(panel: Any, found: Row, place: float, color: str) -> None:
    value = 100 * found["value"]
    if found["low"] is None:
        panel.plot([value], [place], "D", color=color, markerfacecolor="white", markersize=5)
        panel.annotate(
            _NO_INTERVAL,
            (value, place),
            (-8, 0),
            textcoords="offset points",
            va="center",
            ha="right",
            fontsize="x-small",
            color="0.4",
        )
        return
    reach = [[value - 100 * found["low"]], [100 * found["high"] - value]]
    panel.errorbar(value, place, xerr=reach, fmt="o", color=color, capsize=2, markersize=5)


def _label(row: Row, most: int = 40) -> str:
    """The name with what was cut. A long one is on several lines, whole settings each (but for longer ones, such as the
    path of a --config): what tells two names apart may stand in their middle."""
    return fill(f"{spaced(row['label'])} ({100 * row['flops_cut']:.0f} %)", most, break_on_hyphens=False)


def _told(row: Row, is_known: bool) -> dict[str, Any]:
    found: dict[str, Any] = row["difference" if is_known else "agreement"]
    return found
