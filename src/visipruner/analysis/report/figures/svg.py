"""What the figures share: from a function to an `<svg>`, the y axis, the line of the dense model."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visipruner.analysis.report import style
from visipruner.analysis.report.content import Document
from visipruner.analysis.report.words import MEASURE_NAMES, dense_level, measure_of

P = ParamSpec("P")


def drawn(function: Callable[P, Figure]) -> Callable[P, str]:
    """Makes the figure in the report's style and gives its SVG, ids named after the function, its texts and numbers."""

    @wraps(function)
    def svg(*args: P.args, **kwargs: P.kwargs) -> str:
        name = "-".join([function.__name__, *(str(arg) for arg in args if isinstance(arg, str | int | float))])
        with style.styled():
            figure = function(*args, **kwargs)
        return style.to_svg(figure, name)

    return svg


def factor(measure: str) -> float:
    """From stored to drawn values: shares are drawn in per cent."""
    return 1.0 if measure == "kl" else 100.0


def finish(axes: Axes, document: Document, measure: str, level: float | None = None) -> None:
    """The y axis and the dense model's line, once everything is drawn."""
    if measure == "kl":
        style.nats_axis(axes, "y")
        axes.set_ylabel("KL divergence from dense, nats")
        return
    if level is None:
        level = dense_level(document) if measure == measure_of(document) else 1.0
    axes.axhline(100 * level, color=style.INK, linewidth=1, linestyle=(0, (5, 3)), label="dense model")
    axes.set_ylabel(f"{MEASURE_NAMES[measure]}, %")
