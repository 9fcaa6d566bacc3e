"""The first figure: the stages as a bar over the layers, and below it the curves they were read off."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from visipruner.report import style
from visipruner.report.words import MEASURE_NAMES, dense_level, layers, measure_of

_WINDOW = "sweep_window"


def headline_figure(document: dict[str, Any], narrow: bool = False) -> Figure:
    """Stages (where they were read off) over accuracy, or agreement where right answers are unknown.

    Layer l lies between the ticks l and l + 1. Save it inside `style.styled()`.

    Args:
        document: of `analysis.json`, with the part "sweeps". narrow: for a phone.
    """
    with style.styled():
        has_stages = "stages" in document
        figure = Figure(figsize=(4.8, 6.6) if narrow else (9.6, 6.2), layout="constrained")
        heights = [0.55, 3.0, 2.0] if has_stages else [3.0, 2.0]
        axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
        if has_stages:
            _draw_bar(axes.pop(0), document, narrow)
        _draw_cuts(axes[0], document, narrow)
        _draw_windows(axes[1], document)
        last = document["model"]["layers"]
        axes[1].set_xlim(-0.4, last + 0.4)
        style.layer_axis(axes[1], last, "layer k")
        axes[1].set_xlim(-0.4, last + 0.4)
        return figure


def _draw_bar(axes: Axes, document: dict[str, Any], narrow: bool) -> None:
    last, stages = document["model"]["layers"], document["stages"]
    found = stages["overall"]
    axes.axis("off")
    axes.set_ylim(0, 1)
    axes.barh(0.5, last, height=0.72, color=style.STAGE_COLORS["between"])
    told: list[Any] = []
    shallow, leave = found["shallow_end"], found["exit_layer"]
    if not found["needs_image"]:
        axes.text(last / 2, 0.5, "no stages: little is lost without the image", ha="center", va="center")
        return
    if shallow:
        axes.barh(0.5, shallow["value"], height=0.72, color=style.STAGE_COLORS["shallow"])
        _draw_interval(axes, shallow, 0.68)
    told.append(_key("shallow", f"shallow, below {layers(shallow)}" if shallow else "no shallow stage", shallow))
    if leave:
        axes.barh(0.5, last - leave["value"], left=leave["value"], height=0.72, color=style.STAGE_COLORS["deep"])
        _draw_interval(axes, leave, 0.32)
    for part in found["fusion"]:
        first, end = part["first_layer"], part["last_layer"] + 1
        axes.barh(0.5, end - first, left=first, height=1.0, color=style.STAGE_COLORS["fusion"], edgecolor="white")
    places = ", ".join(f"{part['first_layer']}–{part['last_layer']}" for part in found["fusion"])
    told.append(_key("fusion", f"fusion, layers {places}" if places else "no single place of fusion", places))
    told.append(_key("deep", f"deep, from {layers(leave)}" if leave else "no deep stage", leave))
    told.append(_key("between", "between", True))
    choice = stages["filter"]
    if choice:
        words = f"proposed filter: after layer {choice['layer']}, {choice['budget']} tokens go on"
        told += axes.plot(choice["layer"] + 1, 0.93, "v", color=style.INK, markersize=7, linestyle="none", label=words)
    axes.legend(
        handles=told,
        loc="lower left",
        bbox_to_anchor=(0, 1.05),
        ncols=1 if narrow else 3,
        borderaxespad=0,
        columnspacing=1.6,
    )


def _key(stage: str, label: str, there: Any) -> Patch:
    color = style.STAGE_COLORS[stage] if there else "none"
    return Patch(facecolor=color, edgecolor=style.FAINT, linewidth=0.6, label=label)


def _draw_interval(axes: Axes, found: dict[str, float], height: float) -> None:
    """Whiskers from the lowest to the highest boundary that the data allow."""
    reach = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
    for color, width in (("white", 4.0), (style.INK, 1.4)):
        axes.errorbar(
            [found["value"]], [height], xerr=reach, color=color, fmt="o", capsize=4, elinewidth=width,
            capthick=width, markersize=width + 2, zorder=3,
        )  # fmt: skip


def _draw_cuts(axes: Axes, document: dict[str, Any], narrow: bool) -> None:
    measure = measure_of(document)
    for name, label, color, marker in (
        ("sweep_shallow_to_deep", "text cannot see the image below layer k", style.BLUE, "o"),
        ("discard", "image discarded from layer k on", style.PURPLE, "s"),
    ):
        sweep = document["sweeps"][name]
        style.draw_curve(axes, sweep["layer"], sweep[measure], color, label, scale=100, marker=marker)
    _draw_dense(axes, document)
    axes.set_ylabel(f"{MEASURE_NAMES[measure]}, %")
    style.legend_above(axes, 1 if narrow else 3)


def _draw_windows(axes: Axes, document: dict[str, Any]) -> None:
    measure = measure_of(document)
    window, sweep = document["settings"]["plan"]["window"], document["sweeps"][_WINDOW]
    middle = np.array(sweep["layer"]) + window / 2
    label = f"text cannot see the image in {window} layers (drawn at their middle)"
    style.draw_curve(axes, middle.tolist(), sweep[measure], style.ORANGE, label, scale=100, marker="^")
    _draw_dense(axes, document, None)
    axes.set_ylabel(f"{MEASURE_NAMES[measure]}, %")
    style.legend_above(axes, 1)


def _draw_dense(axes: Axes, document: dict[str, Any], label: str | None = "dense model") -> None:
    axes.axhline(100 * dense_level(document), color=style.INK, linewidth=1, linestyle=(0, (5, 3)), label=label)
