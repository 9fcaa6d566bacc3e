"""What a reader wants first: a few numbers, the stages, the kinds of questions."""

from __future__ import annotations

from typing import Any

from visipruner.analysis.intervals import ENOUGH
from visipruner.analysis.report.content import Document, Picture, Section, Table
from visipruner.analysis.report.figures import effects
from visipruner.analysis.report.headline import headline_figure
from visipruner.analysis.report.style import to_svg
from visipruner.analysis.report.words import (
    MEASURE_NAMES,
    TEACHER_FORCED,
    basis,
    dense_level,
    evidence_of,
    interval,
    layers,
    loss,
    measure_of,
    places_of,
    point,
    share,
)

_MOST_TYPES, _FEWEST = 12, 3


def facts(document: Document) -> list[tuple[str, str, str]]:
    """The few numbers a reader wants first: name, value, what it means."""
    dense = document["dense"]
    kinds = len(dense["by_type"])
    told = [("samples", str(dense["samples"]), f"{dense['images']} images, {kinds} kinds of questions")]
    if dense["accuracy"] is not None:
        found = point(dense["accuracy"], 0)
        told.append(("dense accuracy", share(dense_level(document)), f"of these samples{_range(found)}"))
    stages = document.get("stages")
    if stages and stages["overall"]["needs_image"]:
        shallow, leave = stages["overall"]["shallow_end"], stages["overall"]["exit_layer"]
        places = places_of(stages["overall"]["fusion"])
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
        told.append(("proposed settings cut", share(checked["proposed"]["flops_cut"]), f"of FLOPs; {_kept(checked)}"))
    return told


def _kept(checked: dict[str, Any]) -> str:
    """What the proposed settings keep, beside the dense model on the same samples: those analysed are others."""
    dense, proposed = checked["dense"], checked["proposed"]
    where = f"on {proposed['samples']} samples of other images"
    if proposed["accuracy"] is None:
        return f"same answers {interval(proposed['agreement'])} {where}"
    return f"accuracy {interval(proposed['accuracy'])}, dense {share(dense['accuracy']['value'])}, {where}"


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
    measures = " and ".join(dict.fromkeys((MEASURE_NAMES[evidence_of(document)], MEASURE_NAMES[measure_of(document)])))
    caption = (
        f"Layer l lies between the ticks l and l + 1. Curves: {measures} with text → visual attention "
        "cut in all layers below k, with all visual tokens discarded from layer k on, and with the attention cut in a "
        f"moving window; the dashed line is the dense model. {basis(document)} "
    )
    text = []
    if "control" in document:
        lost = point(document["control"]["swap_all"]["kl"], 0)
        text.append(
            f"Control: with another picture's tokens in all layers {interval(lost, 1, 2, ' nats')} are lost. Stages "
            "are claimed only where that is more than the tolerance, and fusion only where another picture makes a "
            "difference in the same layers: an answer may need the weight of attention and not what the image says."
        )
    if stages:
        caption += (
            f"Bar: up to where, and from where on, no more than {loss(stages['tolerance'], stages['metric'])} "
            f"({MEASURE_NAMES[stages['metric']]}) are lost; whiskers are the boundary's 95 % interval. Not shown: what "
            "pruning by these boundaries does (see the proposed settings). "
        )
    else:
        text += ["The parts that stages are read off were not all measured, so there are curves but no stages."]
    drawings = [to_svg(headline_figure(document, narrow), f"headline-{narrow}") for narrow in (False, True)]
    return Section(
        "stages",
        "Stages",
        text,
        [Picture("Where the model uses the image", drawings[0], caption + TEACHER_FORCED, drawings[1])],
    )


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
        measure = evidence_of(document)
        drawn = [kind for kind in order if kinds[kind]["samples"] >= _FEWEST][:_MOST_TYPES]
        for kind in drawn:
            svg = effects.sweeps_of_type(document, kind)
            pictures.append(Picture(f"{_kind(kind)}, {kinds[kind]['samples']} samples", svg, small=True))
        unit = "nats, linear below 0.01" if measure == "kl" else "per cent"
        left = f" Of {len(order)} kinds those with most samples are drawn." if len(drawn) < len(order) else ""
        text = [
            f"Each panel: {MEASURE_NAMES[measure]} ({unit}) with text → visual attention cut below layer k (blue, "
            "circles) and with the image discarded from k on (purple, squares); dotted: the boundaries of this kind. "
            f"Kinds with {ENOUGH} images or more have 95 % bands, those of fewer would only pile up.{left}"
        ]
    return Section("kinds", "By kind of question", text if pictures else (), pictures, tables)


def _kind(name: str) -> str:
    return name or "(no kind given)"


def _boundary_cells(found: dict[str, Any], accuracy: dict[str, Any] | None) -> tuple[str, ...]:
    level = "–" if accuracy is None else share(accuracy["mean"][0])
    if not found["needs_image"]:
        return str(found["samples"]), level, "image not needed", "–", "–"
    places = places_of(found["fusion"])
    return str(found["samples"]), level, layers(found["shallow_end"]), places or "none", layers(found["exit_layer"])
