"""How every figure of the report looks: colors that color-blind readers tell apart, axes, and SVG with live text."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visipruner.analysis.report.words import MEASURE_NAMES, Document, dense_level
from visipruner.analysis.result import ENOUGH

INK, FAINT, RULE = "#1f2430", "#6b7280", "#d9dce1"
BLUE, ORANGE, GREEN, PINK, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#6a4c93", "#7a7f87"
STAGE_COLORS = {"shallow": "#8cc0e0", "fusion": ORANGE, "between": "#eceef1", "deep": PURPLE}
MARKERS = ("o", "s", "^", "D", "v", "P")
COLORS = (ORANGE, BLUE, GREEN, PINK, GREY, PURPLE)

Which = Literal["x", "y"]
_NATS = (0, 0.01, 0.1, 1, 10)
# Any: matplotlib types the keys as a list of literals that differs between its versions.
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved inside look like the report's; matplotlib's own settings are as before afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        # Text stays text in the page, so a glyph that is missing here is not missing there.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def new_figure(width: float = 5.0, height: float = 3.1) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; sizes in inches. Call inside `styled`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def to_svg(figure: Figure, name: str) -> str:
    """An `<svg>` element for HTML, the same bytes for the same figure. `name` keeps ids of several figures apart."""
    buffer = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Inside HTML an svg needs no namespaces, its groups no ids, and its size is the page's affair.
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    # Ids in order of their appearance: matplotlib's own may hold addresses in memory.
    prefix = hashlib.sha256(name.encode()).hexdigest()[:8]
    ids = {found: f"f{prefix}-{number}" for number, found in enumerate(re.findall(r' id="([^"]+)"', text))}
    text = re.sub(r'( id="|href="#|url\(#)([^")]+)', lambda found: found[1] + ids.get(found[2], found[2]), text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return re.sub(r"\n\s*", "\n", text).strip()


def numbers(values: Sequence[float | None], scale: float = 1.0) -> Any:
    """An array in which what is not known is NaN."""
    return np.array([np.nan if value is None else value * scale for value in values], dtype=float)


def factor(what: str) -> float:
    """From stored to drawn values: shares are drawn in per cent, a measure's or those whose label ends in %."""
    return 100.0 if what.endswith("%") or what in ("accuracy", "agreement") else 1.0


class Line(NamedTuple):
    """A curve to draw over `layers`: its `mean`, `low` and `high`."""

    label: str
    layers: Sequence[float]
    curve: Mapping[str, Any]
    color: str
    marker: str = "o"
    dashes: str = "-"


def draw_line(axes: Axes, line: Line, scale: float = 1.0, band: float = 0.18) -> None:
    """A mean as a line with its 95 % band; gaps where nothing is known, and no band where it rests on few images."""
    label, layers, curve, color, marker, dashes = line
    if curve.get("images", ENOUGH) >= ENOUGH:
        low, high = numbers(curve["low"], scale), numbers(curve["high"], scale)
        axes.fill_between(list(layers), low, high, color=color, alpha=band, linewidth=0)
    axes.plot(list(layers), numbers(curve["mean"], scale), dashes, color=color, marker=marker, label=label)


def whiskers(curve: Mapping[str, Any], scale: float) -> tuple[Any, list[Any]]:
    """The means of a curve and how far their 95 % intervals reach to both sides."""
    mean, low, high = (numbers(curve[name], scale) for name in ("mean", "low", "high"))
    # A quantile of few samples may lie a rounding error beyond the mean.
    return mean, [np.clip(mean - low, 0, None), np.clip(high - mean, 0, None)]


def measure_axis(axes: Axes, document: Document, measure: str, which: Which = "y", level: float | None = None) -> None:
    """The axis of a measure and the dense model's line, at `level` if given. Call it after drawing."""
    if measure == "kl":
        # Linear up to 0.01, logarithmic above.
        getattr(axes, f"set_{which}scale")("symlog", linthresh=0.01)
        getattr(axes, f"set_{which}ticks")(_NATS, [f"{tick:g}" for tick in _NATS], minor=False)
        getattr(axes, f"set_{which}lim")(0, max(getattr(axes.dataLim, f"{which}1") * 1.3, 0.02))
        label = "KL divergence from dense, nats"
    else:
        if level is None:
            level = dense_level(document, measure)
        draw = axes.axhline if which == "y" else axes.axvline
        draw(100 * level, color=INK, linewidth=1, linestyle=(0, (5, 3)), label="dense model")
        label = f"{MEASURE_NAMES[measure]}, %"
    axes.set(**{f"{which}label": label})


def legend_above(axes: Axes, columns: int = 2, lines: Sequence[Any] | None = None) -> None:
    """A legend on top of the axes, of all that has a label or of `lines`."""
    shown = axes.get_legend_handles_labels()[0] if lines is None else list(lines)
    axes.legend(
        handles=shown, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, columnspacing=1.4
    )


def layer_axis(axes: Axes, last: float, label: str = "layer") -> None:
    """Whole layers only, a handful of ticks."""
    step = next((s for s in (1, 2, 5, 10, 20) if last / s <= 8), 40)
    axes.set_xticks(range(0, int(last) + 1, step))
    axes.set_xlabel(label)
    axes.margins(x=0.02)
