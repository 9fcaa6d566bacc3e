"""Accuracy (or agreement) against what was cut, by three measures of a budget: one picture of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.runner import DENSE
from visipruner.files import write_atomic

MARKERS = "osD^vP*Xh<>pd"  # 13: with seven colours no pair comes twice among 91 methods
# Okabe and Ito's colours, told apart by colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_AXES: dict[str, Callable[[dict[str, Any], dict[str, Any]], float]] = {
    "visual tokens cut, mean over layers": lambda row, dense: 1 - float(row["visual_tokens"] / dense["visual_tokens"]),
    "FLOPs cut, decoder (counted)": lambda row, dense: float(row["flops_cut"]),
    "visual attention cut (the paper's formula)": lambda row, dense: float(row["visual_attention_cut"]),
}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG with a panel an axis of budgets: one point a row of `summarize`; points of one method are joined.

    Rows belong to one method when their names are equal up to " @ ", or where there is none up to ":". Grey is the
    dense model with its 95 % interval; `ranking.draw` shows the methods' intervals.
    """
    from matplotlib.figure import Figure

    measure = "accuracy" if all(row["accuracy"] for row in rows) else "agreement"
    dense = next(row for row in rows if row["method"] == DENSE)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != DENSE:
            families.setdefault(_family(row["method"]), []).append(row)
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for panel, (title, cut) in zip(panels, _AXES.items(), strict=True):
        if dense[measure]["low"] is not None:
            panel.axhspan(100 * dense[measure]["low"], 100 * dense[measure]["high"], color="0.92", zorder=0)
        panel.axhline(100 * dense[measure]["value"], color="0.4", linestyle="--", label=DENSE)
        for number, (name, members) in enumerate(families.items()):
            points = sorted((100 * cut(row, dense), 100 * row[measure]["value"]) for row in members)
            panel.plot(
                *zip(*points, strict=True),
                label=name,
                marker=MARKERS[number % len(MARKERS)],
                color=COLORS[number % len(COLORS)],
                linewidth=1,
                markersize=5,
            )
        panel.set_xlabel(f"{title}, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{measure}, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small", frameon=False
    )
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def _family(name: str) -> str:
    matched, mark, _ = name.partition(" @ ")
    return matched if mark else name.split(":")[0]
