"""Accuracy (or agreement) against what was cut, with intervals: one picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.runner import DENSE
from visipruner.files import write_atomic

MARKERS = "osD^vP*Xh<>pd8"
# Okabe and Ito's colours, told apart by colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_AXES = {
    "flops_cut": "FLOPs cut, decoder (counted)",
    "visual_attention_cut": "visual attention cut (the paper's formula)",
}


def draw(rows: Sequence[dict[str, Any]], path: Path, axis: str = "flops_cut") -> None:
    """Writes a PNG: one point a row of `summarize` with its 95 % interval; points of one method are joined.

    Rows belong to one method when their names are equal up to the first "@", ":" or ",".
    """
    from matplotlib.figure import Figure

    measure = "accuracy" if all(row["accuracy"] for row in rows) else "agreement"
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    dense = next(row for row in rows if row["method"] == DENSE)[measure]
    panel.axhspan(100 * dense["low"], 100 * dense["high"], color="0.9", zorder=0)
    panel.axhline(100 * dense["value"], color="0.4", linestyle="--", label=DENSE)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != DENSE:
            families.setdefault(_family(row["method"]), []).append(row)
    for number, (name, members) in enumerate(families.items()):
        members = sorted(members, key=lambda row: float(row[axis]))
        x = [100 * row[axis] for row in members]
        y = [100 * row[measure]["value"] for row in members]
        low = [value - 100 * row[measure]["low"] for value, row in zip(y, members, strict=True)]
        high = [100 * row[measure]["high"] - value for value, row in zip(y, members, strict=True)]
        panel.errorbar(
            x,
            y,
            yerr=[low, high],
            label=name,
            marker=MARKERS[number % len(MARKERS)],
            color=COLORS[number % len(COLORS)],
            linewidth=1,
            capsize=2,
            elinewidth=0.6,
        )
    panel.set_xlabel(f"{_AXES[axis]}, %")
    panel.set_ylabel(f"{measure}, % (95 % interval over images)")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small", ncols=2, frameon=False, loc="lower left")
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=150))


def _family(name: str) -> str:
    for mark in "@:,":
        name = name.split(mark)[0]
    return name.strip()
