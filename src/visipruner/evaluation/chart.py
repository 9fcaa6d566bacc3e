"""Accuracy (or agreement) against what was cut, by three measures of a budget: one picture of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
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
_LEGEND_WIDTH = 44  # letters


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes a PNG with a panel an axis of budgets: one point a row of `summarize`, with its 95 % interval.

    Rows whose names are equal up to " @ " are one method at several budgets, and joined. The grey band is the dense
    model's interval; `ranking.draw` shows the paired differences, which are surer.
    """
    from matplotlib.figure import Figure

    measure = "accuracy" if all(row["accuracy"] for row in rows) else "agreement"
    dense = next(row for row in rows if row["method"] == DENSE)
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != DENSE:
            methods.setdefault(row["method"].partition(" @ ")[0], []).append(row)
    figure = Figure(figsize=(13, 5.5 + 0.08 * len(methods)), layout="constrained")
    panels = figure.subplots(1, len(_AXES), sharey=True)
    for panel, (title, cut) in zip(panels, _AXES.items(), strict=True):
        _draw_dense(panel, dense[measure])
        for number, (name, members) in enumerate(methods.items()):
            points = sorted(
                (100 * cut(row, dense), 100 * row[measure]["value"], _reach(row[measure])) for row in members
            )
            _draw_method(panel, name, points, MARKERS[number % len(MARKERS)], COLORS[number % len(COLORS)])
        panel.set_xlabel(f"{title}, %")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"{measure}, % (whiskers: 95 % interval of the row alone)")
    handles, labels = panels[0].get_legend_handles_labels()
    wrapped = [fill(spaced(label), _LEGEND_WIDTH) for label in labels]
    figure.legend(handles, wrapped, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def spaced(name: str) -> str:
    """A name whose settings can go on several lines."""
    return ", ".join(part.strip() for part in name.split(","))


def _draw_dense(panel: Any, found: dict[str, Any]) -> None:
    if found["low"] is not None:
        panel.axhspan(100 * found["low"], 100 * found["high"], color="0.92", zorder=0, label=f"{DENSE}, 95 % interval")
    panel.axhline(100 * found["value"], color="0.4", linestyle="--", label=DENSE)


def _draw_method(
    panel: Any, name: str, points: Sequence[tuple[float, float, tuple[float, float]]], marker: str, color: str
) -> None:
    cuts, values, reach = zip(*points, strict=True)
    panel.errorbar(
        cuts,
        values,
        yerr=list(zip(*reach, strict=True)),
        label=name,
        marker=marker,
        color=color,
        linewidth=1,
        markersize=5,
        elinewidth=0.5,
        capsize=1.5,
    )


def _reach(found: dict[str, Any]) -> tuple[float, float]:
    """How far the interval goes down and up; nowhere where there is none."""
    if found["low"] is None:
        return 0.0, 0.0
    return 100 * (found["value"] - found["low"]), 100 * (found["high"] - found["value"])
