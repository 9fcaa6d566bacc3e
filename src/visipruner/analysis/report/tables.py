"""The report's tables, as rows of text: what was found in numbers, and beside what the paper reports."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from visipruner.analysis.report import figures, words
from visipruner.analysis.report.words import Document

_PAPER_LAYERS = 32
Row = tuple[str, ...]
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


def boundaries(document: Document) -> list[Row]:
    stages, dense = document["stages"], document["dense"]
    rows = [("all", *_boundary_cells(stages["overall"], dense["accuracy"]))]
    for kind in _kinds(document):
        accuracy = dense["by_type"][kind]["accuracy"]
        told = None if accuracy is None else {"mean": [accuracy]}
        rows.append((words.kind(kind), *_boundary_cells(stages["by_type"][kind], told)))
    return rows


def drawn_kinds(document: Document) -> list[str]:
    """Kinds of questions with samples enough to draw."""
    kinds = document["dense"]["by_type"]
    return [kind for kind in _kinds(document) if kinds[kind]["samples"] >= _FEWEST][:_MOST_TYPES]


def _kinds(document: Document) -> list[str]:
    kinds = document["dense"]["by_type"]
    return sorted(kinds, key=lambda kind: (-kinds[kind]["samples"], kind))


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


def other_measures(document: Document) -> list[str]:
    """Measures that the first figure leaves out."""
    left_out = {words.measure_of(document), words.evidence_of(document)}
    if document["dense"]["accuracy"] is None:
        left_out.add("accuracy")
    return [measure for measure in words.MEASURE_NAMES if measure not in left_out]


def conditions(data: dict[str, Any]) -> list[Row]:
    return [
        (
            figures.CONDITIONS.get(name, name),
            words.interval(words.point(data["accuracy"], place)),
            words.interval(words.point(data["agreement"], place)),
            words.interval(words.point(data["kl"], place), 1, 4, ""),
        )
        for place, name in enumerate(data["condition"])
    ]


def scores(data: dict[str, Any], measure: str) -> tuple[Row, list[Row]]:
    """Head and rows: every score at every budget, at an early, a middle and a late layer."""
    count = len(data["layer"])
    cells = [
        (b, i) for b in range(len(data["budget"])) for i in sorted({count // 5, count // 2, count - 1 - count // 5})
    ]
    rows = []
    for number, name in enumerate(data["score"]):
        curves = [words.curve_at(data[measure], number, b) for b, _ in cells]
        points = [words.point(curve, place) for curve, (_, place) in zip(curves, cells, strict=True)]
        told = [words.interval(found, 1, 3, "") if measure == "kl" else words.interval(found) for found in points]
        rows.append((figures.SCORES.get(name, name), *told))
    head = [f"{words.budget(data['budget'][b])} after layer {data['layer'][place]}" for b, place in cells]
    return ("score", *head), rows


def checked(rows: list[dict[str, Any]]) -> list[Row]:
    return [
        (row["name"], *(words.interval(row[name]) for name in ("accuracy", "agreement")), words.share(row["flops_cut"]))
        for row in rows
    ]


def seconds(document: Document) -> list[Row]:
    spent, count = document["seconds"]["by_part"], document["dense"]["samples"]
    whole = sum(spent.values())
    rows = [
        (name, words.seconds(value), f"{value / count:.1f} s", words.percent(value / whole) if whole else "–")
        for name, value in sorted(spent.items(), key=lambda item: -item[1])
    ]
    return [*rows, ("all", words.seconds(whole), f"{whole / count:.1f} s", "")]


def settings(document: Document) -> list[Row]:
    told = {**document["model"], **document["settings"], **document["versions"]}
    return [(name.replace("_", " "), _plain(value)) for name, value in told.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---- beside the paper: another model on other data ----------------------------------------------------------------


def beside_paper(document: Document) -> list[Row]:
    """A row an experiment that both did; none where there is none."""
    parts = (_sweeps, _shallow, _skip, _cache, _scores, _stages, _lens, _method)
    return [row for part in parts for row in part(document)]


def _at(document: Document, data: dict[str, Any], place: int) -> str:
    return words.interval(words.point(data[words.measure_of(document)], place))


def _same_depth(layer: int, document: Document) -> int:
    return round(layer / _PAPER_LAYERS * int(document["model"]["layers"]))


def _nearest(layers: list[int], wanted: int) -> int:
    return min(range(len(layers)), key=lambda place: abs(layers[place] - wanted))


def _sweeps(document: Document) -> Iterator[Row]:
    if "sweeps" not in document:
        return
    last, window = document["model"]["layers"], document["settings"]["plan"]["window"]
    below, discard, moving = (document["sweeps"][name] for name in ("sweep_shallow_to_deep", "discard", "sweep_window"))
    yield "nothing cut", "62.0 (GQA)", _at(document, below, 0), ""
    if stages := document.get("stages"):
        shallow = stages["overall"]["shallow_end"]
        without = "from k = 1 on" if stages["overall"]["needs_image"] else "nowhere"
        yield (
            "text → visual cut in layers 0 .. k−1: where quality falls",
            "from about k = 8",
            f"k = {words.layers(shallow)}" if shallow else without,
            f"ours: last k that costs at most {words.loss(stages['tolerance'], stages['metric'])}",
        )
    means = moving[words.measure_of(document)]["mean"]
    worst = min(range(len(means)), key=lambda place: np.inf if means[place] is None else means[place])
    yield (
        "text → visual cut in the worst window of layers",
        "51.7 (GQA, layers 8–14)",
        f"{_at(document, moving, worst)}, {words.span(worst, worst + window - 1)}",
        f"7 of 32 layers there, {window} of {last} here",
    )
    for paper_layer, number in ((25, "61.91"), (19, "59.13")):
        layer = _same_depth(paper_layer, document)
        yield (
            f"visual tokens discarded from {words.percent(paper_layer / _PAPER_LAYERS)} of the depth on",
            f"{number} (GQA, layer {paper_layer})",
            f"{_at(document, discard, discard['layer'].index(layer))}, layer {layer}",
            "same share of the depth",
        )


def _shallow(document: Document) -> Iterator[Row]:
    data = document.get("shallow")
    if not data:
        return
    names, count = data["condition"], document["settings"]["plan"]["shallow"]
    first = f"first layers: 2 or 7 of 32 there, {count} here"
    for name, experiment, paper in (
        ("zero", "text → visual masked", "57.41 (GQA)"),
        ("merge_0", "mass moved to the first visual token", "61.98 (GQA)"),
        ("merge_25", "mass moved to the token at a quarter", "61.83 (GQA)"),
        ("merge_50", "mass moved to the token in the middle", "61.76 (GQA)"),
        ("merge_99", "mass moved to the last visual token", "61.55 (GQA)"),
        ("top_10", "most attended 10 % masked", "62.0 of 62.0 (GQA)"),
        ("bottom_90", "least attended 90 % masked", "71.5 of 72.6 (average)"),
        ("first_half", "first half masked", "72.6 of 72.6 (average)"),
        ("second_half", "second half masked", "72.4 of 72.6 (average)"),
        ("layer_0", "text → visual masked in layer 0 only", "65.2 of 72.6 (average)"),
        ("after_0", "masked in the other shallow layers only", "72.1 of 72.6 (average)"),
        ("passive", "visual → visual masked too, mass moved", "61.96 to 60.78 (GQA)"),
    ):
        if name in names:
            how = "cut before the softmax here" if name not in {"zero", "passive"} and "merge" not in name else ""
            yield experiment, paper, _at(document, data, names.index(name)), "; ".join(filter(None, (first, how)))


def _skip(document: Document) -> Iterator[Row]:
    data = document.get("skip", {})
    for paper_layer, number in ((19, "61.66"), (25, "61.40")) if data else ():
        place = _nearest(data["layer"], _same_depth(paper_layer, document))
        yield (
            f"visual tokens skip one layer at {words.percent(paper_layer / _PAPER_LAYERS)} of the depth",
            f"{number} (GQA, layer {paper_layer})",
            f"{_at(document, data, place)}, layer {data['layer'][place]}",
            "the nearest layer that was tried",
        )


def _cache(document: Document) -> Iterator[Row]:
    data = document.get("cache")
    if not data or len(data["window"]) != 4:
        return
    numbers = {
        "shallow": "33.8 (layers 0–7)",
        "middle": "28.3 (layers 8–14)",
        "deep": "31.1 (layers 25–31)",
        "all": "26.1",
    }
    for place, (name, number) in enumerate(numbers.items()):
        first, end = map(int, data["window"][place].split("-"))
        yield (
            f"visual keys and values gone while decoding, {name} layers",
            f"{number}, of 31.2 (MM-Vet)",
            f"{_at(document, data, place)}, {words.span(first, end - 1)}",
            "long answers there; answers of one token cannot change here",
        )


def _scores(document: Document) -> Iterator[Row]:
    data = document.get("scores")
    if not data:
        return
    choice = (document.get("stages") or {}).get("filter")
    wanted = choice["layer"] if choice else data["layer"][len(data["layer"]) // 2]
    place = _nearest(data["layer"], wanted)
    for name, said, paper in (
        ("influence", "influence ‖c_j‖", "61.3 GQA, 57.8 TextVQA, 31.9 MM-Vet"),
        ("last_row", "last row's attention", "60.3 GQA, 57.1 TextVQA, 25.4 MM-Vet"),
    ):
        if name in data["score"]:
            found = words.curve_at(data[words.measure_of(document)], data["score"].index(name), -1)
            yield (
                f"tokens kept by {said}",
                paper,
                f"{words.interval(words.point(found, place))}, after layer {data['layer'][place]}",
                f"here {words.some(data['budget'][-1], document['model']['visual_tokens'])} tokens stay, nothing else "
                "pruned",
            )


def _stages(document: Document) -> Iterator[Row]:
    stages = document.get("stages")
    if not stages:
        return
    last = document["model"]["layers"]
    exits = float(np.mean(stages["paper_exit_layers"]))
    yield (
        "exit layer by the paper's test, mean",
        "23.9 of 32 (75 %)",
        f"{exits:.1f} of {last} ({words.percent(exits / last)})",
        "ours: all visual tokens take part in the test",
    )
    choice = stages["filter"]
    if choice:
        budget, whole = choice["budget"], document["model"]["visual_tokens"]
        is_share = isinstance(budget, float)
        part = words.share(budget) if is_share else f"{budget} of {whole} ({words.share(budget / whole)})"
        yield (
            "visual tokens that go on after the filter layer",
            "10.3 of 576 (1.8 %), by a threshold",
            f"{part}, a budget",
            "ours: the cheapest tried budget within the tolerance",
        )


def _lens(document: Document) -> Iterator[Row]:
    if "lens" in document:
        median, last = document["lens"]["median_leading_layer"], document["model"]["layers"]
        yield (
            "logit lens: the answer's first word leads",
            "by layer 24 of 32 (75 %), one example",
            f"from layer {median:.0f} of {last} ({words.percent(median / last)}), median",
            "ours: leads from there to the last layer",
        )


def _method(document: Document) -> Iterator[Row]:
    by_name = {row["name"]: row for row in document.get("check", [])}
    dense, ours = by_name.get("dense"), by_name.get("proposed")
    if dense and ours:
        key = words.measure_of(document)
        before, after = (words.interval(row.get(key)) for row in (dense, ours))
        yield (
            "the whole method",
            "62.0 → 60.3 (GQA), 54 % of the FLOPs cut",
            f"{before} → {after}, {words.share(ours['flops_cut'])} of the FLOPs cut",
            "paper: visual tokens only, by formula; ours: the whole prompt, counted; other images than analysed",
        )
