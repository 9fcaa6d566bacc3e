"""The first figure: the stages as a bar over the layers, and below it the curves they were read off."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from visipruner.analysis.report import style
from visipruner.analysis.report.words import (
    MEASURE_NAMES,
    budget_of,
    count_of,
    dense_level,
    evidence_of,
    fusion_in,
    layers,
    loss,
    measure_of,
    some,
)


def headline_figure(document: dict[str, Any], narrow: bool = False) -> Figure:
    """Stages over the curves they were read off, and over accuracy (agreement where right answers are unknown).

    Layer l lies between the ticks l and l + 1. Save it inside `style.styled()`.

    Args:
        document: of `analysis.json`, with the part "sweeps". narrow: for a phone.
    """
    with style.styled():
        measures = list(dict.fromkeys((evidence_of(document), measure_of(document))))
        heights = [0.55] * ("stages" in document) + [2.4] * len(measures)
        size = (4.8, 2.0 + 1.1 * sum(heights)) if narrow else (9.6, 1.0 + sum(heights))
        figure = Figure(figsize=size, layout="constrained")
        axes = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0])
        if "stages" in document:
            _draw_bar(axes.pop(0), document, narrow)
        for panel, measure in zip(axes, measures, strict=True):
            _draw_evidence(panel, document, measure, narrow, with_names=panel is axes[0])
        last = document["model"]["layers"]
        style.layer_axis(axes[-1], last, "layer k")
        axes[-1].set_xlim(-0.4, last + 0.4)
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
        axes.text(last / 2, 0.5, "no stages: answers do not depend on the image", ha="center", va="center")
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
    places = fusion_in(found["fusion"])
    told.append(_key("fusion", f"fusion, {places}" if places else "no single place of fusion", places))
    told.append(_key("deep", f"deep, from {layers(leave)}" if leave else "no deep stage", leave))
    told.append(_key("between", "between", True))
    if any(boundary and boundary["low"] is not None for boundary in (shallow, leave)):
        told.append(Line2D([], [], color=style.INK, marker="|", label="95 % of a boundary"))
    proposed = stages["pruner"]
    if proposed:
        words = f"proposed filter: after layer {proposed['filter_layer']}, {some(budget_of(proposed))} tokens go on"
        told += axes.plot(
            proposed["filter_layer"] + 1, 0.93, "v", color=style.INK, markersize=7, linestyle="none", label=words
        )
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
    """Whiskers from the lowest to the highest boundary that the data allow; none for one image."""
    if found["low"] is None:
        return
    reach = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
    for color, width in (("white", 4.0), (style.INK, 1.4)):
        axes.errorbar(
            [found["value"]], [height], xerr=reach, color=color, fmt="o", capsize=4, elinewidth=width,
            capthick=width, markersize=width + 2, zorder=3,
        )  # fmt: skip


def _draw_evidence(axes: Axes, document: dict[str, Any], measure: str, narrow: bool, with_names: bool) -> None:
    """Both cuts and the windows in one measure; the dense model, and the tolerance where stages were read off it."""
    window, scale = document["settings"]["plan"]["window"], 1.0 if measure == "kl" else 100.0
    for part, name, label, color, marker, shift in (
        ("sweeps", "sweep_shallow_to_deep", "text cannot see the image below layer k", style.BLUE, "o", 0.0),
        ("sweeps", "discard", "image discarded from layer k on", style.PURPLE, "s", 0.0),
        (
            "sweeps",
            "sweep_window",
            f"text cannot see it in {count_of(window)} (at the middle)",
            style.ORANGE,
            "^",
            window / 2,
        ),
        ("control", "swap_window", f"text sees another picture in {count_of(window)}", style.GREEN, "v", window / 2),
    ):
        if part not in document:
            continue
        sweep = document[part][name]
        places = [layer + shift for layer in sweep["layer"]]
        style.draw_curve(axes, places, sweep[measure], color, label, scale=scale, marker=marker, band=0.14)
    dense = 0.0
    if measure == "kl":
        style.nats_axis(axes, "y")
        axes.set_ylabel("KL from dense, nats")
    else:
        dense = dense_level(document) if measure == measure_of(document) else 1.0
        axes.axhline(100 * dense, color=style.INK, linewidth=1, linestyle=(0, (5, 3)), label="dense model")
        axes.set_ylabel(f"{MEASURE_NAMES[measure]}, %")
    stages = document.get("stages")
    if stages and measure == stages["metric"]:
        tolerance = stages["tolerance"]
        level = tolerance if measure == "kl" else 100 * (dense - tolerance)
        label = f"tolerance, {loss(tolerance, measure)}"
        axes.axhline(level, color=style.INK, linewidth=1, linestyle=":", label=label)
    if with_names:
        if axes.collections:
            axes.fill_between([], [], color=style.FAINT, alpha=0.2, linewidth=0, label="bands: 95 % over images")
        style.legend_above(axes, 1 if narrow else 2)
    elif measure != "kl":
        style.legend_above(axes, 1, axes.get_lines()[-1:])
