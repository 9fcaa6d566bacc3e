"""Methods ranked by what they lose, a panel a budget: the picture to choose a method by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from visipruner.evaluation.runner import DENSE
from visipruner.evaluation.significance import LEVEL
from visipruner.files import write_atomic

UNMATCHED = "settings as given"
_SURE, _UNSURE = "#0072B2", "0.55"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG: points lost or won against dense (or answers changed) with 95 % intervals, the best on top.

    Names that end in "@ 50%" share a panel. Differences that are not significant after Holm's correction are grey;
    each row also says how many FLOPs were cut. A row without an interval is a dot.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != DENSE:
            name, mark, budget = row["method"].rpartition(" @ ")
            panels.setdefault(f"{budget} cut" if mark else UNMATCHED, []).append({**row, "label": name or budget})
    if not panels:
        return
    is_known = all(row["difference"] for members in panels.values() for row in members)
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(5 * len(panels), 1.5 + 0.3 * most), layout="constrained")
    for axes, (title, members) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        told = sorted(((_told(row, is_known), row) for row in members), key=lambda pair: pair[0]["value"])
        for place, (found, row) in enumerate(told):
            color = _SURE if row["is_significant"] or not is_known else _UNSURE
            axes.errorbar(100 * found["value"], place, xerr=_reach(found), fmt="o", color=color, capsize=2)
        names = [f"{_wrapped(row['label'])} ({100 * row['flops_cut']:.0f} %)" for _, row in told]
        axes.set_yticks(range(len(told)), names, fontsize="small")
        axes.set_title(title, fontsize="medium")
        axes.axvline(0 if is_known else 100, color="0.4", linestyle="--", linewidth=1)
        axes.set_xlabel("points of accuracy against dense" if is_known else "same answer as dense, %")
        axes.set_ylim(-0.7, most - 0.3)
        axes.grid(axis="x", alpha=0.3)
    if is_known:
        figure.supxlabel(f"blue: significant, Holm's p is at most {LEVEL}; grey: not", fontsize="small", color="0.3")
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def _wrapped(label: str, most: int = 40) -> str:
    """A long name on several lines, whole settings each (but for longer ones, such as the path of a --config): what
    tells two names apart may stand in their middle."""
    spaced = ", ".join(part.strip() for part in label.split(","))
    return fill(spaced, most, break_on_hyphens=False)


def _told(row: dict[str, Any], is_known: bool) -> dict[str, Any]:
    found: dict[str, Any] = row["difference" if is_known else "agreement"]
    return found


def _reach(found: dict[str, Any]) -> list[list[float]] | None:
    if found["low"] is None:
        return None
    return [[100 * (found["value"] - found["low"])], [100 * (found["high"] - found["value"])]]
