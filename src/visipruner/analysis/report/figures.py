"""The report's figures, one function each: numbers of `analysis.json` in, a figure out.

Call them inside `style.styled()`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from visipruner.analysis.boundaries import Budget
from visipruner.analysis.report import style, words
from visipruner.analysis.report.style import Line
from visipruner.analysis.report.words import MEASURE_NAMES, Document, count_of, curve_at, evidence_of, some, span

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
SCORES = {
    "influence": "influence ‖c_j‖",
    "last_row": "last row's attention",
    "text_mean": "question's attention",
    "visual": "visual rows' attention",
    "random": "random",
}
_SWEEPS = {
    "sweep_shallow_to_deep": (style.BLUE, "o"),
    "discard": (style.PURPLE, "s"),
    "sweep_window": (style.ORANGE, "^"),
    "swap_window": (style.GREEN, "v"),
}
_SHADES = ("#9fc5de", "#5a9bc4", "#1f6fa5", "#0b3d66", "#06243d")


def sweep_line(document: Document, name: str, label: str, measure: str, kind: str | None = None) -> Line:
    """The curve of a sweep, windows at their middle; of one `kind` of questions, or all."""
    sweep = document["control" if name == "swap_window" else "sweeps"][name]
    shift = document["settings"]["plan"]["window"] / 2 if name.endswith("window") else 0.0
    curve = (sweep if kind is None else sweep["by_type"][kind])[measure]
    return Line(label, [layer + shift for layer in sweep["layer"]], curve, *_SWEEPS[name])


def over_layers(
    document: Document,
    lines: Iterable[Line],
    what: str,
    label: str = "layer",
    *,
    points: Iterable[Line] = (),
    height: float = 3.1,
    band: float = 0.18,
    limits: tuple[float, float | None] | None = None,
) -> Figure:
    """Curves over layers.

    Args:
        what: a measure, whose dense level is drawn too, or the name of the y axis, with `limits`. label: of the x axis;
            with k in it, layer k lies between the ticks k and k + 1. points: drawn as dots with whiskers.
    """
    figure, axes = style.new_figure(5.0, height)
    for line in lines:
        style.draw_line(axes, line, style.factor(what), band)
    for name, layers, curve, color, marker, _ in points:
        mean, reach = style.whiskers(curve, style.factor(what))
        axes.errorbar(layers, mean, yerr=reach, fmt=marker, color=color, capsize=2.5, label=name)
    if what in MEASURE_NAMES:
        style.measure_axis(axes, document, what)
    else:
        axes.set_ylabel(what)
        axes.set_ylim(*limits or axes.get_ylim())
    style.layer_axis(axes, document["model"]["layers"] - (" k" not in label), label)
    style.legend_above(axes)
    return figure


def seen(document: Document, curves: Mapping[str, Mapping[str, Any]], unit: str) -> Figure:
    """A few curves with one value a layer."""
    looks = zip((style.ORANGE, style.BLUE, style.GREEN, style.GREY), style.MARKERS, strict=False)
    lines = [
        Line(name, range(len(curve["mean"])), curve, *look)
        for (name, curve), look in zip(curves.items(), looks, strict=False)
    ]
    return over_layers(document, lines, unit, limits=(0, None))


def sweeps(document: Document, measure: str) -> Figure:
    labels = {
        "sweep_shallow_to_deep": "cut below k",
        "discard": "discarded from k on",
        "sweep_window": f"cut in {count_of(document['settings']['plan']['window'])}",
    }
    lines = [sweep_line(document, name, label, measure) for name, label in labels.items()]
    return over_layers(document, lines, measure, "layer k")


def sweeps_of_type(document: Document, kind: str) -> Figure:
    """Both cuts for one kind of question; its boundaries as vertical lines."""
    measure = evidence_of(document)
    figure, axes = style.new_figure(3.4, 2.3)
    for name, label in (("sweep_shallow_to_deep", "cut below k"), ("discard", "gone from k on")):
        style.draw_line(axes, sweep_line(document, name, label, measure, kind), style.factor(measure))
    found = document.get("stages", {}).get("by_type", {}).get(kind, {})
    for name, color in (("shallow_end", style.BLUE), ("exit_layer", style.PURPLE)):
        if found.get(name):
            axes.axvline(found[name]["value"], color=color, linewidth=1, linestyle=":")
    dense = document["dense"]["by_type"][kind]["accuracy"] if measure == "accuracy" else None
    style.measure_axis(axes, document, measure, level=1.0 if dense is None else dense)
    axes.set_ylabel("KL, nats" if measure == "kl" else MEASURE_NAMES[measure].removesuffix(" as dense") + ", %")
    if measure != "kl":
        axes.set_ylim(-4, 104)
    style.layer_axis(axes, document["model"]["layers"], "layer k")
    style.legend_above(axes, 2, axes.get_lines()[:2])
    return figure


def conditions(document: Document, measure: str, part: str) -> Figure:
    """One row a condition (part "shallow") or window of layers (part "cache"), the first on top."""
    data = document[part]
    if part == "shallow":
        labels = [CONDITIONS.get(name, name) for name in data["condition"]]
    else:
        labels = [span(first, end - 1) for first, end in (map(int, window.split("-")) for window in data["window"])]
    figure, axes = style.new_figure(5.0, 0.9 + 0.22 * len(labels))
    mean, reach = style.whiskers(data[measure], style.factor(measure))
    rows, color = np.arange(len(labels)), style.PURPLE if measure == "kl" else style.BLUE
    axes.errorbar(mean, rows, xerr=reach, fmt="o", color=color, markersize=4.5, capsize=2.5, elinewidth=1.2)
    axes.set_yticks(rows, labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    style.measure_axis(axes, document, measure, "x")
    if measure != "kl":
        style.legend_above(axes)
    return figure


def frozen_blocks(document: Document, measure: str) -> Figure:
    """Visual rows that do not run in a few layers in a row, by the first of them."""
    data, size = document["freeze_blocks"], document["settings"]["plan"]["block"]
    label = f"layers k to k + {size - 1} frozen" if size > 1 else "layer k frozen"
    line = Line(label, data["layer"], data[measure], style.BLUE, "D")
    return over_layers(document, [line], measure, "first layer k of the block")


def skip_and_discard(document: Document, measure: str) -> Figure:
    """Visual rows skipped or frozen in one layer, against discarded from that layer on."""
    lines = [sweep_line(document, "discard", "discarded from k on", measure)] if "sweeps" in document else []
    points = [
        Line(label, document[part]["layer"], document[part][measure], color, marker)
        for part, label, color, marker in (
            ("skip", "only layer k skipped", style.GREEN, "o"),
            ("freeze", "only layer k frozen", style.BLUE, "D"),
        )
        if part in document
    ]
    return over_layers(document, lines, measure, "layer k", points=points)


def scores(document: Document, budget: Budget, measure: str) -> Figure:
    """Scores against each other: `budget` tokens (or this share of them) go on after layer l."""
    data = document["scores"]
    place = data["budget"].index(budget)
    looks = zip(style.COLORS, style.MARKERS, strict=True)
    lines = [
        Line(SCORES.get(name, name), data["layer"], curve_at(data[measure], number, place), *look)
        for number, (name, look) in enumerate(zip(data["score"], looks, strict=False))
        if (measure, name) != ("overlap", "influence")
    ]
    lines = [line._replace(dashes="--") if line.label == "random" else line for line in lines]
    what = "tokens shared with influence's choice, %" if measure == "overlap" else measure
    return over_layers(document, lines, what, "tokens leave after layer", height=3.5, band=0.10)


def budgets(document: Document, measure: str) -> Figure:
    """Influence alone at every budget that was tried."""
    found = {}
    for data in (document.get("scores"), document.get("budgets")):  # each looks at layers of its own
        if data and "influence" in data["score"]:
            number = data["score"].index("influence")
            for place, budget in enumerate(data["budget"]):
                found[budget] = data["layer"], curve_at(data[measure], number, place)
    lines = [
        Line(f"{some(budget, document['model']['visual_tokens'])} tokens", *found[budget], color, marker)
        for budget, color, marker in zip(sorted(found), _SHADES, style.MARKERS, strict=False)
    ]
    return over_layers(document, lines, measure, "tokens leave after layer", height=3.5, band=0.14)


def overlap_of_questions(document: Document) -> Figure:
    """Most attended tokens that two questions share: about one image, and about two."""
    data = document["attention"]["overlap_of_questions"]
    same, other = data["same_image"], data["other_image"]
    lines = []
    if same:
        lines.append(Line("one image, two questions", range(len(same["mean"])), same, style.ORANGE))
    if other:
        lines.append(Line("two images", range(len(other)), {"mean": other, "images": 0}, style.GREY, "v", "--"))
    return over_layers(document, lines, "shared top tokens, %", limits=(-3, 103))


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


def counts(groups: Mapping[str, Mapping[int, int]], layers: int, label: str, never: str = "") -> Figure:
    """How many samples fall on each layer; layer `layers` stands for `never`."""
    figure, axes = style.new_figure(5.0, 2.7)
    width = 0.8 / len(groups)
    looks: Sequence[tuple[str, str]] = ((style.BLUE, ""), (style.PURPLE, "////"))
    for number, ((title, found), (color, hatch)) in enumerate(zip(groups.items(), looks, strict=False)):
        shift = (number - (len(groups) - 1) / 2) * width
        places, heights = zip(*((layer + shift, found[layer]) for layer in sorted(found)), strict=True)
        axes.bar(places, heights, width, color=color, label=title, hatch=hatch, edgecolor="white")
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


def stability(document: Document) -> Figure:
    """Top tokens that a layer shares with the next one, by both rankings."""
    curves = {}
    if "attention" in document:
        curves["by attention"] = document["attention"]["overlap_of_layers"]
    if "influence" in document:
        curves["by influence"] = document["influence"]["stability"]  # null in the last layer, which nothing follows
    return seen(document, curves, "shared with the next layer, %")


def leads(document: Document) -> Figure:
    found = {int(layer): count for layer, count in document["lens"]["leading_layer"].items()}
    return counts({"samples": found}, document["model"]["layers"], "layer from which the answer leads")


def paper_layers(document: Document) -> Figure:
    groups = {f"{test} layer": Counter(document["stages"][f"paper_{test}_layers"]) for test in ("filter", "exit")}
    return counts(groups, document["model"]["layers"], "layer", "never")


def headline_figure(document: dict[str, Any], narrow: bool = False) -> Figure:
    """Stages over the curves they were read off, and over accuracy (agreement where right answers are unknown).

    Layer l lies between the ticks l and l + 1. Save it inside `style.styled()`.

    Args:
        document: of `analysis.json`, with the part "sweeps". narrow: for a phone.
    """
    with style.styled():
        measures = list(dict.fromkeys((words.evidence_of(document), words.measure_of(document))))
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
    told.append(_key("shallow", f"shallow, below {words.layers(shallow)}" if shallow else "no shallow stage", shallow))
    if leave:
        axes.barh(0.5, last - leave["value"], left=leave["value"], height=0.72, color=style.STAGE_COLORS["deep"])
        _draw_interval(axes, leave, 0.32)
    for part in found["fusion"]:
        first, end = part["first_layer"], part["last_layer"] + 1
        axes.barh(0.5, end - first, left=first, height=1.0, color=style.STAGE_COLORS["fusion"], edgecolor="white")
    places = words.fusion_in(found["fusion"])
    told.append(_key("fusion", f"fusion, {places}" if places else "no single place of fusion", places))
    told.append(_key("deep", f"deep, from {words.layers(leave)}" if leave else "no deep stage", leave))
    told.append(_key("between", "between", True))
    if any(boundary and boundary["low"] is not None for boundary in (shallow, leave)):
        told.append(Line2D([], [], color=style.INK, marker="|", label="95 % of a boundary"))
    proposed = stages["pruner"]
    if proposed:
        kept = words.some(words.budget_of(proposed))
        said = f"proposed filter: after layer {proposed['filter_layer']}, {kept} tokens go on"
        told += axes.plot(
            proposed["filter_layer"] + 1, 0.93, "v", color=style.INK, markersize=7, linestyle="none", label=said
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
    window = words.count_of(document["settings"]["plan"]["window"])
    labels = {
        "sweep_shallow_to_deep": "text cannot see the image below layer k",
        "discard": "image discarded from layer k on",
        "sweep_window": f"text cannot see it in {window} (at the middle)",
        "swap_window": f"text sees another picture in {window}",
    }
    for name, label in labels.items():
        if name != "swap_window" or "control" in document:
            style.draw_line(axes, sweep_line(document, name, label, measure), style.factor(measure), 0.14)
    style.measure_axis(axes, document, measure)
    if measure == "kl":
        axes.set_ylabel("KL from dense, nats")
    stages = document.get("stages")
    if stages and measure == stages["metric"]:
        tolerance = stages["tolerance"]
        level = tolerance if measure == "kl" else 100 * (words.dense_level(document, measure) - tolerance)
        axes.axhline(
            level, color=style.INK, linewidth=1, linestyle=":", label=f"tolerance, {words.loss(tolerance, measure)}"
        )
    if with_names:
        if axes.collections:
            axes.fill_between([], [], color=style.FAINT, alpha=0.2, linewidth=0, label="bands: 95 % over images")
        style.legend_above(axes, 1 if narrow else 2)
    elif measure != "kl":
        style.legend_above(axes, 1, axes.get_lines()[-1:])
