"""The first figure, and what a reader wants first: a few numbers, the stages, the kinds of questions."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from visipruner.analysis.evidence import ENOUGH
from visipruner.analysis.report import figures, style, words
from visipruner.analysis.report.figures import sweep_line
from visipruner.analysis.report.style import picture
from visipruner.analysis.report.words import Document, Section, Table


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


_MOST_TYPES, _FEWEST = 12, 3


def facts(document: Document) -> list[tuple[str, str, str]]:
    """The few numbers a reader wants first: name, value, what it means."""
    dense = document["dense"]
    kinds = len(dense["by_type"])
    told = [("samples", str(dense["samples"]), f"{dense['images']} images, {kinds} kinds of questions")]
    if dense["accuracy"] is not None:
        found = words.point(dense["accuracy"], 0)
        told.append(("dense accuracy", words.share(words.dense_level(document)), f"of these samples{_range(found)}"))
    stages = document.get("stages")
    if stages and stages["overall"]["needs_image"]:
        shallow, leave = stages["overall"]["shallow_end"], stages["overall"]["exit_layer"]
        places = words.places_of(stages["overall"]["fusion"])
        last = stages["num_layers"]
        told += [
            (
                "shallow ends at",
                f"{shallow['value']:.0f}" if shallow else "none",
                _between(shallow, "no shallow stage"),
            ),
            (f"fusion in {'layer' if places.isdigit() else 'layers'}", places or "none", "windows that answers need"),
            ("vision can leave at", f"{leave['value']:.0f}" if leave else "none", _between(leave, f"of {last}: never")),
        ]
    checked = {row["name"]: row for row in document.get("check", [])}
    if "proposed" in checked:
        told.append(
            ("proposed settings cut", words.share(checked["proposed"]["flops_cut"]), f"of FLOPs; {_kept(checked)}")
        )
    return told


def _kept(checked: dict[str, Any]) -> str:
    """What the proposed settings keep, beside the dense model on the same samples: those analysed are others."""
    dense, proposed = checked["dense"], checked["proposed"]
    where = f"on {proposed['samples']} samples of other images"
    if proposed["accuracy"] is None:
        return f"same answers {words.interval(proposed['agreement'])} {where}"
    return f"accuracy {words.interval(proposed['accuracy'])}, dense {words.share(dense['accuracy']['value'])}, {where}"


def _range(found: dict[str, float] | None) -> str:
    if found is None or found["low"] is None:
        return ""
    return f"; 95 %: {100 * found['low']:.0f}–{100 * found['high']:.0f} %"


def _between(found: dict[str, float] | None, without: str) -> str:
    if found is None:
        return without
    return "one image" if found["low"] is None else f"95 %: {found['low']:.0f}–{found['high']:.0f}"


def stages(document: Document) -> Section | None:
    """The first figure and what was found in words."""
    if "sweeps" not in document:
        return None
    stages = document.get("stages")
    measures = dict.fromkeys((words.evidence_of(document), words.measure_of(document)))
    names = " and ".join(words.MEASURE_NAMES[measure] for measure in measures)
    caption = (
        f"Layer l lies between the ticks l and l + 1. Curves: {names} with text → visual attention cut in all "
        "layers below k, with all visual tokens discarded from layer k on, and with the attention cut in a moving "
        f"window; the dashed line is the dense model. {words.basis(document)} "
    )
    text = []
    if "control" in document:
        lost = words.point(document["control"]["swap_all"]["kl"], 0)
        text.append(
            f"Control: with another picture's tokens in all layers {words.interval(lost, 1, 2, ' nats')} are lost. "
            "Stages are claimed only where that is more than the tolerance, and fusion only where another picture "
            "makes a difference in the same layers: an answer may need the weight of attention and not what the image "
            "says."
        )
    if stages:
        caption += (
            f"Bar: up to where, and from where on, no more than {words.loss(stages['tolerance'], stages['metric'])} "
            f"({words.MEASURE_NAMES[stages['metric']]}) are lost; whiskers are the boundary's 95 % interval. Not "
            "shown: what pruning by these boundaries does (see the proposed settings). "
        )
    else:
        text += ["The parts that stages are read off were not all measured, so there are curves but no stages."]
    whole, narrow = (headline_figure(document, narrow) for narrow in (False, True))
    first = picture("Where the model uses the image", whole, caption + words.TEACHER_FORCED, narrow)
    return Section("stages", "Stages", text, [first])


def types(document: Document) -> Section | None:
    """Boundaries and curves for every kind of question."""
    kinds = document["dense"]["by_type"]
    stages, sweeps = document.get("stages"), document.get("sweeps")
    if len(kinds) < 2 or not (stages or sweeps):
        return None
    order = sorted(kinds, key=lambda kind: (-kinds[kind]["samples"], kind))
    tables, pictures = [], []
    if stages:
        rows = [("all", *_boundary_cells(stages["overall"], document["dense"]["accuracy"]))]
        for kind in order:
            accuracy = kinds[kind]["accuracy"]
            told = None if accuracy is None else {"mean": [accuracy]}
            rows.append((_kind(kind), *_boundary_cells(stages["by_type"][kind], told)))
        tables.append(
            Table(
                "Boundaries by kind of question",
                ("kind", "samples", "dense accuracy", "shallow ends at", "fusion", "vision can leave at"),
                rows,
                "In brackets 95 % of bootstrap resamples over images, if there are several. With few samples a kind's "
                "boundary is little more than a hint, and kinds whose intervals overlap are not shown to differ.",
            )
        )
    if sweeps:
        measure = words.evidence_of(document)
        drawn = [kind for kind in order if kinds[kind]["samples"] >= _FEWEST][:_MOST_TYPES]
        for kind in drawn:
            title = f"{_kind(kind)}, {kinds[kind]['samples']} samples"
            pictures.append(picture(title, figures.sweeps_of_type(document, kind), small=True))
        unit = "nats, linear below 0.01" if measure == "kl" else "per cent"
        left = f" Of {len(order)} kinds those with most samples are drawn." if len(drawn) < len(order) else ""
        text = [
            f"Each panel: {words.MEASURE_NAMES[measure]} ({unit}) with text → visual attention cut below layer k "
            "(blue, circles) and with the image discarded from k on (purple, squares); dotted: the boundaries of this "
            f"kind. Kinds with {ENOUGH} images or more have 95 % bands, those of fewer would only pile up.{left}"
        ]
    return Section("kinds", "By kind of question", text if pictures else (), pictures, tables)


def _kind(name: str) -> str:
    return name or "(no kind given)"


def _boundary_cells(found: dict[str, Any], accuracy: dict[str, Any] | None) -> tuple[str, ...]:
    level = "–" if accuracy is None else words.share(accuracy["mean"][0])
    if not found["needs_image"]:
        return str(found["samples"]), level, "image not needed", "–", "–"
    places = words.places_of(found["fusion"])
    return (
        str(found["samples"]),
        level,
        words.layers(found["shallow_end"]),
        places or "none",
        words.layers(found["exit_layer"]),
    )
