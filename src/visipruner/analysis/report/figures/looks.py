"""Figures on what was only looked at, one function each: numbers of `analysis.json` in, an `<svg>` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visipruner.analysis.report import style
from visipruner.analysis.report.content import Document
from visipruner.analysis.report.figures.svg import drawn


@drawn
def curves_over_layers(
    curves: Sequence[tuple[str, Mapping[str, Any]]], unit: str, layers: int, name: str, scale: float = 1.0
) -> Figure:
    """Any few curves with one value a layer. `name` only keeps ids apart."""
    figure, axes = style.new_figure()
    for (label, curve), color, marker in zip(
        curves, (style.ORANGE, style.BLUE, style.GREEN, style.GREY), style.MARKERS, strict=False
    ):
        style.draw_curve(axes, range(len(curve["mean"])), dict(curve), color, label, scale=scale, marker=marker)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    style.layer_axis(axes, layers - 1)
    style.legend_above(axes)
    return figure


@drawn
def overlap_of_questions(document: Document) -> Figure:
    """Most attended tokens that two questions share: about one image, and about two."""
    data = document["attention"]["overlap_of_questions"]
    figure, axes = style.new_figure()
    if data["same_image"]:
        curve = data["same_image"]
        style.draw_curve(axes, range(len(curve["mean"])), curve, style.ORANGE, "one image, two questions", scale=100)
    if data["other_image"]:
        values = 100 * np.array(data["other_image"])
        axes.plot(range(len(values)), values, "--", color=style.GREY, marker="v", label="two images")
    axes.set_ylabel("shared top tokens, %")
    axes.set_ylim(-3, 103)
    style.layer_axis(axes, document["model"]["layers"] - 1)
    style.legend_above(axes)
    return figure


@drawn
def distance(document: Document) -> Figure:
    """The largest change of direction that one visual token makes, and the paper's two thresholds."""
    data = document["influence"]["distance"]
    figure, axes = style.new_figure()
    low, median, high = (np.maximum(style.numbers(data[name]), 1e-7) for name in ("low", "median", "high"))
    axes.fill_between(range(len(median)), low, high, color=style.BLUE, alpha=0.18, linewidth=0)
    axes.plot(range(len(median)), median, "-o", color=style.BLUE, label="median; 10 % to 90 % of samples")
    axes.axhline(0.005, color=style.ORANGE, linewidth=1, linestyle="--", label="filter test, 0.005")
    axes.axhline(0.001, color=style.PURPLE, linewidth=1, linestyle=":", label="exit test, 0.001")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("largest 1 − cos(o, o − c_j)")
    style.layer_axis(axes, document["model"]["layers"] - 1)
    style.legend_above(axes)
    return figure


@drawn
def counts(groups: Sequence[tuple[str, Mapping[int, int]]], layers: int, label: str, never: str, name: str) -> Figure:
    """How many samples fall on each layer; layer `layers` stands for "never". `name` only keeps ids apart."""
    figure, axes = style.new_figure(5.0, 2.7)
    width = 0.8 / len(groups)
    for number, (title, found) in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * width
        places = [layer + shift for layer in sorted(found)]
        heights = [found[layer] for layer in sorted(found)]
        color = (style.BLUE, style.PURPLE)[number % 2]
        axes.bar(places, heights, width, color=color, label=title, hatch=("", "////")[number % 2], edgecolor="white")
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_ylabel("samples")
    style.layer_axis(axes, layers, label)
    axes.set_xlim(-0.8, layers + 0.8)
    if never:
        kept = [tick for tick in axes.get_xticks() if tick <= layers - 2]
        axes.set_xticks([*kept, layers], [*(f"{tick:.0f}" for tick in kept), never])
    style.legend_above(axes)
    return figure
