"""Figures on what was changed in the model, one function each: numbers of `analysis.json` in, an `<svg>` out."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from visipruner.analysis.report import style
from visipruner.analysis.report.content import Document
from visipruner.analysis.report.figures.svg import drawn, factor, finish
from visipruner.analysis.report.words import MEASURE_NAMES, count_of, dense_level, evidence_of, measure_of, span

CONDITIONS = {
    "cut": "all cut before the softmax",
    "zero": "all zeroed after the softmax",
    "merge_0": "mass moved to the first visual token",
    "merge_25": "mass moved to the token at 25 %",
    "merge_50": "mass moved to the token at 50 %",
    "merge_99": "mass moved to the last visual token",
    "top_10": "most attended 10 % cut",
    "bottom_90": "least attended 90 % cut",
    "first_half": "first half cut",
    "second_half": "second half cut",
    "random_half": "random half cut",
    "layer_0": "all cut, in layer 0 only",
    "after_0": "all cut, in the others only",
    "visual_to_visual": "visual → visual cut instead",
    "passive": "that, and mass moved to the first",
}


@drawn
def sweeps(document: Document, measure: str) -> Figure:
    """All three sweeps in one measure."""
    figure, axes = style.new_figure()
    scale = factor(measure)
    window = document["settings"]["plan"]["window"]
    for name, label, color, marker, shift in (
        ("sweep_shallow_to_deep", "cut below k", style.BLUE, "o", 0.0),
        ("discard", "discarded from k on", style.PURPLE, "s", 0.0),
        ("sweep_window", f"cut in {count_of(window)}", style.ORANGE, "^", window / 2),
    ):
        sweep = document["sweeps"][name]
        places = [layer + shift for layer in sweep["layer"]]
        style.draw_curve(axes, places, sweep[measure], color, label, scale=scale, marker=marker)
    finish(axes, document, measure)
    style.layer_axis(axes, document["model"]["layers"], "layer k")
    style.legend_above(axes)
    return figure


@drawn
def sweeps_of_type(document: Document, kind: str) -> Figure:
    """Both cuts for one kind of question; its boundaries as vertical lines."""
    measure = evidence_of(document)
    figure, axes = style.new_figure(3.4, 2.3)
    scale = factor(measure)
    for name, label, color, marker in (
        ("sweep_shallow_to_deep", "cut below k", style.BLUE, "o"),
        ("discard", "gone from k on", style.PURPLE, "s"),
    ):
        sweep = document["sweeps"][name]
        curve = sweep["by_type"][kind][measure]
        style.draw_curve(axes, sweep["layer"], curve, color, label, scale=scale, marker=marker)
    found = document.get("stages", {}).get("by_type", {}).get(kind, {})
    for name, color in (("shallow_end", style.BLUE), ("exit_layer", style.PURPLE)):
        if found.get(name):
            axes.axvline(found[name]["value"], color=color, linewidth=1, linestyle=":")
    dense = document["dense"]["by_type"][kind]["accuracy"] if measure == "accuracy" else None
    finish(axes, document, measure, 1.0 if dense is None else dense)
    axes.set_ylabel("KL, nats" if measure == "kl" else MEASURE_NAMES[measure].removesuffix(" as dense") + ", %")
    if measure != "kl":
        axes.set_ylim(-4, 104)
    style.layer_axis(axes, document["model"]["layers"], "layer k")
    style.legend_above(axes, 2, axes.get_lines()[:2])
    return figure


@drawn
def conditions(document: Document, part: str, measure: str) -> Figure:
    """One row a condition (part "shallow") or window of layers (part "cache")."""
    data = document[part]
    if part == "shallow":
        labels = [CONDITIONS.get(name, name) for name in data["condition"]]
    else:
        ends = [tuple(map(int, window.split("-"))) for window in data["window"]]
        labels = [span(first, end - 1) for first, end in ends]
    figure, axes = style.new_figure(5.0, 0.9 + 0.22 * len(labels))
    scale = factor(measure)
    style.draw_points(axes, data[measure], labels, style.BLUE if measure != "kl" else style.PURPLE, scale)
    if measure == "kl":
        style.nats_axis(axes, "x")
        axes.set_xlabel("KL divergence from dense, nats")
    else:
        level = dense_level(document) if measure == measure_of(document) else 1.0
        axes.axvline(100 * level, color=style.INK, linewidth=1, linestyle=(0, (5, 3)), label="dense model")
        axes.set_xlabel(f"{MEASURE_NAMES[measure]}, %")
        style.legend_above(axes)
    return figure


@drawn
def frozen_blocks(document: Document, measure: str) -> Figure:
    """Vision seen but not worked on in a few layers in a row, by the first of them."""
    figure, axes = style.new_figure()
    data, size = document["freeze_blocks"], document["settings"]["plan"]["block"]
    label = f"layers k to k + {size - 1} frozen" if size > 1 else "layer k frozen"
    style.draw_curve(axes, data["layer"], data[measure], style.BLUE, label, scale=factor(measure), marker="D")
    finish(axes, document, measure)
    style.layer_axis(axes, document["model"]["layers"], "first layer k of the block")
    style.legend_above(axes)
    return figure


@drawn
def skip_and_discard(document: Document, measure: str) -> Figure:
    """Vision out of one layer, or seen there but not worked on, against vision out from that layer on."""
    figure, axes = style.new_figure()
    scale = factor(measure)
    if "sweeps" in document:
        discard = document["sweeps"]["discard"]
        style.draw_curve(
            axes, discard["layer"], discard[measure], style.PURPLE, "discarded from k on", scale=scale, marker="s"
        )
    for part, mark, color, label in (
        ("skip", "o", style.GREEN, "only layer k skipped"),
        ("freeze", "D", style.BLUE, "only layer k frozen"),
    ):
        if part in document:
            data = document[part]
            mean, low, high = (style.numbers(data[measure][name], scale) for name in ("mean", "low", "high"))
            reach = [np.clip(mean - low, 0, None), np.clip(high - mean, 0, None)]
            axes.errorbar(data["layer"], mean, yerr=reach, fmt=mark, color=color, capsize=2.5, label=label)
    finish(axes, document, measure)
    style.layer_axis(axes, document["model"]["layers"], "layer k")
    style.legend_above(axes)
    return figure
