"""What the paper reports for LLaVA-1.5-7B beside the same experiment here: another model, other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from visipruner.analysis.report import words
from visipruner.analysis.report.words import Document, Section, Table

_PAPER_LAYERS = 32
Row = tuple[str, str, str, str]


def paper(document: Document) -> Section | None:
    """The paper's numbers beside ours, a row an experiment that both did; None where there is none."""
    parts = (_sweeps, _shallow, _skip, _cache, _scores, _stages, _lens, _method)
    rows = [row for part in parts for row in part(document)]
    if not rows:
        return None
    table = Table(
        "The paper's experiments here",
        (
            "experiment",
            "LLaVA-1.5-7B, from the paper",
            f"{document['model']['name']}, measured here",
            "how the two differ",
        ),
        rows,
        f"Ours: {words.MEASURE_NAMES[words.measure_of(document)]} unless said otherwise, with 95 % intervals. The "
        "paper's column is another model's on other data (GQA and averages over benchmarks), printed for orientation; "
        "only the direction of a change compares. Layers counted from 0 in both columns.",
        numeric=False,
    )
    return Section("paper", "Beside the paper", tables=[table])


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
