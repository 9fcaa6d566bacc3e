"""Pictures of a comparison: accuracy against what was cut, and methods ranked by what they lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from visipruner.evaluation.certainty import LEVEL
from visipruner.evaluation.runner import DENSE
from visipruner.files import write_atomic

Row = dict[str, Any]
MARKERS = "osD^vP*Xh<>pd"  # 13: with seven colours no pair comes twice among 91 methods
# Okabe and Ito's colours, told apart by colour-blind readers.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_AXES: dict[str, Callable[[Row, Row], float]] = {
    "visual tokens cut, mean over layers": lambda row, dense: 1 - float(row["visual_tokens"] / dense["visual_tokens"]),
    "FLOPs cut, decoder (counted)": lambda row, dense: float(row["flops_cut"]),
    "visual attention cut (the paper's formula)": lambda row, dense: float(row["visual_attention_cut"]),
}
_LEGEND_WIDTH = 44  # letters
UNMATCHED = "settings as given"
_SURE, _UNSURE = "#0072B2", "0.55"
_PAGE, _LINE = 9.0, 0.21  # inches: a page is read 900 pixels wide
_NO_INTERVAL = "no interval: no image differs"


def draw_budgets(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG with a panel an axis of budgets: one point a row of `summarize`, with its 95 % interval.

    Rows whose names are equal up to " @ " are one method at several budgets, and joined. The grey band is the dense
    model's interval; `draw_ranking` shows the paired differences, which are surer.
    """
    from matplotlib.figure import Figure

    measure = "accuracy" if all(row["accuracy"] for row in rows) else "agreement"
    dense = next(row for row in rows if row["method"] == DENSE)
    methods: dict[str, list[Row]] = {}
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
    wrapped = [fill(_spaced(label), _LEGEND_WIDTH) for label in labels]
    figure.legend(handles, wrapped, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def _spaced(name: str) -> str:
    """A name whose settings can go on several lines."""
    return ", ".join(part.strip() for part in name.split(","))


def _draw_dense(panel: Any, found: Row) -> None:
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


def _reach(found: Row) -> tuple[float, float]:
    """How far the interval goes down and up; nowhere where there is none."""
    if found["low"] is None:
        return 0.0, 0.0
    return 100 * (found["value"] - found["low"]), 100 * (found["high"] - found["value"])


def draw_ranking(rows: Sequence[Row], path: Path) -> None:
    """Writes a PNG: points lost or won against dense (or answers changed) with 95 % intervals, the best on top.

    Names that end in "@ 50%" share a panel. Differences not significant after Holm's correction are grey; a row without
    an interval is a hollow mark, and says so.
    """
    from matplotlib.figure import Figure

    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row["method"] != DENSE:
            name, mark, budget = row["method"].rpartition(" @ ")
            panels.setdefault(f"{budget} cut" if mark else UNMATCHED, []).append({**row, "label": name or budget})
    if not panels:
        return
    is_known = all(row["difference"] for members in panels.values() for row in members)
    lines = [sum(_label(row).count("\n") + 1 for row in members) for members in panels.values()]
    figure = Figure(figsize=(_PAGE, 1 + sum(0.6 + _LINE * count for count in lines)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=[2 + count for count in lines])
    for panel, (title, members) in zip(axes[:, 0], panels.items(), strict=True):
        _draw_panel(panel, title, members, is_known)
    axes[-1, 0].set_xlabel("points of accuracy against dense" if is_known else "same answer as dense, %")
    color = f"blue: significant, Holm's p is at most {LEVEL}; grey: not.  " if is_known else ""
    figure.supxlabel(f"{color}In brackets: FLOPs of the decoder that were cut.", fontsize="small", color="0.3")
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=130))


def _draw_panel(panel: Any, title: str, members: Sequence[Row], is_known: bool) -> None:
    shown = "difference" if is_known else "agreement"
    told = sorted(((row[shown], row) for row in members), key=lambda pair: float(pair[0]["value"]))
    places, place = [], 0.0
    for found, row in told:
        height = _label(row).count("\n") + 1
        place += height / 2
        _draw_row(panel, found, place, _SURE if row["is_significant"] or not is_known else _UNSURE)
        places.append(place)
        place += height / 2
    panel.set_yticks(places, [_label(row) for _, row in told], fontsize="small")
    panel.set_title(title, fontsize="medium", loc="left")
    panel.axvline(0 if is_known else 100, color="0.4", linestyle="--", linewidth=1)
    panel.set_ylim(-0.3, place + 0.3)
    panel.grid(axis="x", alpha=0.3)
    panel.tick_params(labelbottom=True)


def _draw_row(panel: Any, found: Row, place: float, color: str) -> None:
    value = 100 * found["value"]
    if found["low"] is None:
        panel.plot([value], [place], "D", color=color, markerfacecolor="white", markersize=5)
        panel.annotate(
            _NO_INTERVAL,
            (value, place),
            (-8, 0),
            textcoords="offset points",
            va="center",
            ha="right",
            fontsize="x-small",
            color="0.4",
        )
        return
    reach = [[value - 100 * found["low"]], [100 * found["high"] - value]]
    panel.errorbar(value, place, xerr=reach, fmt="o", color=color, capsize=2, markersize=5)


def _label(row: Row, most: int = 40) -> str:
    """The name with what was cut, a long one on several lines: what tells two names apart may stand in their middle."""
    return fill(f"{_spaced(row['label'])} ({100 * row['flops_cut']:.0f} %)", most, break_on_hyphens=False)
