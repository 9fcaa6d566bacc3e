"""Figures on scores and budgets, one function each: numbers of `analysis.json` in, an `<svg>` out."""

from __future__ import annotations

from matplotlib.figure import Figure

from visipruner.analysis.evidence import Budget
from visipruner.analysis.report import style
from visipruner.analysis.report.content import Document
from visipruner.analysis.report.figures.svg import drawn, factor, finish
from visipruner.analysis.report.words import curve_at, some

SCORES = {
    "influence": "influence ‖c_j‖",
    "last_row": "last row's attention",
    "text_mean": "question's attention",
    "visual": "visual rows' attention",
    "random": "random",
}


@drawn
def scores(document: Document, budget: Budget, measure: str) -> Figure:
    """Scores against each other: `budget` tokens (or this share of them) go on after layer l."""
    data = document["scores"]
    place = data["budget"].index(budget)
    figure, axes = style.new_figure(5.0, 3.5)
    scale = factor(measure)
    for number, name in enumerate(data["score"]):
        if measure == "overlap" and name == "influence":
            continue
        curve = curve_at(data[measure], number, place)
        style.draw_curve(
            axes,
            data["layer"],
            curve,
            style.COLORS[number % len(style.COLORS)],
            SCORES.get(name, name),
            scale=scale,
            marker=style.MARKERS[number % len(style.MARKERS)],
            dashes="--" if name == "random" else "-",
            band=0.10,
        )
    if measure == "overlap":
        axes.set_ylabel("tokens shared with influence's choice, %")
    else:
        finish(axes, document, measure)
    style.layer_axis(axes, document["model"]["layers"] - 1, "tokens leave after layer")
    style.legend_above(axes)
    return figure


@drawn
def budgets(document: Document, measure: str) -> Figure:
    """Influence alone at every budget that was tried."""
    shades = ["#9fc5de", "#5a9bc4", "#1f6fa5", "#0b3d66", "#06243d"]
    found = {}
    for part in ("scores", "budgets"):
        data = document.get(part)
        if data and "influence" in data["score"]:
            number = data["score"].index("influence")
            for place, budget in enumerate(data["budget"]):
                curve = curve_at(data[measure], number, place)
                found[budget] = data["layer"], curve  # the two parts look at layers of their own
    figure, axes = style.new_figure(5.0, 3.5)
    scale = factor(measure)
    for number, budget in enumerate(sorted(found)):
        color, marker = shades[number % len(shades)], style.MARKERS[number % len(style.MARKERS)]
        label = f"{some(budget, document['model']['visual_tokens'])} tokens"
        layers, curve = found[budget]
        style.draw_curve(axes, layers, curve, color, label, scale=scale, marker=marker, band=0.14)
    finish(axes, document, measure)
    style.layer_axis(axes, document["model"]["layers"] - 1, "tokens leave after layer")
    style.legend_above(axes)
    return figure
