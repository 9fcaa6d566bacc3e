"""What the paper reports for LLaVA-1.5-7B beside the same experiment here: another model, other data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from visipruner.analysis.report.content import Table
from visipruner.analysis.report.words import (
    MEASURE_NAMES,
    curve_at,
    interval,
    layers,
    loss,
    measure_of,
    percent,
    point,
    share,
    some,
    span,
)

_PAPER_LAYERS = 32
Row = tuple[str, str, str, str]


def comparison(document: dict[str, Any]) -> Table | None:
    """One row an experiment that both did; None where nothing was measured that the paper has too."""
    parts = (_sweeps, _shallow, _skip, _cache, _scores, _tokens, _lens, _method)
    rows = [row for part in parts for row in part(document)]
    if not rows:
        return None
    measure = MEASURE_NAMES[measure_of(document)]
    return Table(
        "The paper's experiments here",
        (
            "experiment",
            "LLaVA-1.5-7B, from the paper",
            f"{document['model']['name']}, measured here",
            "how the two differ",
        ),
        rows,
        f"Ours: {measure} unless said otherwise, with 95 % intervals. The paper's column is another model's on other "
        "data (GQA and averages over benchmarks), printed for orientation; only the direction of a change compares. "
        "Layers counted from 0 in both columns.",
        numeric=False,
    )


def _at(document: dict[str, Any], data: dict[str, Any], place: int) -> str:
    return interval(point(data[measure_of(document)], place))


def _same_depth(layer: int, document: dict[str, Any]) -> int:
    return round(layer / _PAPER_LAYERS * int(document["model"]["layers"]))


def _sweeps(document: dict[str, Any]) -> Iterator[Row]:
    if "sweeps" not in document:
        return
    last, window = document["model"]["layers"], document["settings"]["plan"]["window"]
    below, discard, moving = (document["sweeps"][name] for name in ("sweep_shallow_to_deep", "discard", "sweep_window"))
    yield "nothing cut", "62.0 (GQA)", _at(document, below, 0), ""
    stages = document.get("stages")
    if stages:
        shallow = stages["overall"]["shallow_end"]
        without = "from k = 1 on" if stages["overall"]["needs_image"] else "nowhere"
        yield (
            "text → visual cut in layers 0 .. k−1: where quality falls",
            "from about k = 8",
            f"k = {layers(shallow)}" if shallow else without,
            f"ours: last k that costs at most {loss(stages['tolerance'], stages['metric'])}",
        )
    means = moving[measure_of(document)]["mean"]
    known = [value if value is not None else np.inf for value in means]
    worst = int(np.argmin(known))
    yield (
        "text → visual cut in the worst window of layers",
        "51.7 (GQA, layers 8–14)",
        f"{_at(document, moving, worst)}, {span(worst, worst + window - 1)}",
        f"7 of 32 layers there, {window} of {last} here",
    )
    for paper_layer, number in ((25, "61.91"), (19, "59.13")):
        layer = _same_depth(paper_layer, document)
        yield (
            f"visual tokens discarded from {percent(paper_layer / _PAPER_LAYERS)} of the depth on",
            f"{number} (GQA, layer {paper_layer})",
            f"{_at(document, discard, discard['layer'].index(layer))}, layer {layer}",
            "same share of the depth",
        )


def _shallow(document: dict[str, Any]) -> Iterator[Row]:
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


def _skip(document: dict[str, Any]) -> Iterator[Row]:
    data = document.get("skip")
    if not data:
        return
    for paper_layer, number in ((19, "61.66"), (25, "61.40")):
        wanted = _same_depth(paper_layer, document)
        place = min(range(len(data["layer"])), key=lambda i: abs(data["layer"][i] - wanted))
        yield (
            f"visual tokens skip one layer at {percent(paper_layer / _PAPER_LAYERS)} of the depth",
            f"{number} (GQA, layer {paper_layer})",
            f"{_at(document, data, place)}, layer {data['layer'][place]}",
            "the nearest layer that was tried",
        )


def _cache(document: dict[str, Any]) -> Iterator[Row]:
    data = document.get("cache")
    if not data or len(data["window"]) != 4:
        return
    numbers = ("33.8 (layers 0–7)", "28.3 (layers 8–14)", "31.1 (layers 25–31)", "26.1")
    places = ("shallow", "middle", "deep", "all")
    for place, (name, number) in enumerate(zip(places, numbers, strict=True)):
        first, end = map(int, data["window"][place].split("-"))
        yield (
            f"visual keys and values gone while decoding, {name} layers",
            f"{number}, of 31.2 (MM-Vet)",
            f"{_at(document, data, place)}, {span(first, end - 1)}",
            "long answers there; answers of one token cannot change here",
        )


def _scores(document: dict[str, Any]) -> Iterator[Row]:
    data = document.get("scores")
    if not data:
        return
    choice = (document.get("stages") or {}).get("filter")
    wanted = choice["layer"] if choice else data["layer"][len(data["layer"]) // 2]
    place = min(range(len(data["layer"])), key=lambda i: abs(data["layer"][i] - wanted))
    measure = measure_of(document)
    for name, words, paper in (
        ("influence", "influence ‖c_j‖", "61.3 GQA, 57.8 TextVQA, 31.9 MM-Vet"),
        ("last_row", "last row's attention", "60.3 GQA, 57.1 TextVQA, 25.4 MM-Vet"),
    ):
        if name in data["score"]:
            number = data["score"].index(name)
            found = curve_at(data[measure], number, -1)
            yield (
                f"tokens kept by {words}",
                paper,
                f"{interval(point(found, place))}, after layer {data['layer'][place]}",
                f"here {some(data['budget'][-1], document['model']['visual_tokens'])} tokens stay, nothing else pruned",
            )


def _tokens(document: dict[str, Any]) -> Iterator[Row]:
    stages = document.get("stages")
    if not stages:
        return
    last = document["model"]["layers"]
    exits = float(np.mean(stages["paper_exit_layers"]))
    yield (
        "exit layer by the paper's test, mean",
        "23.9 of 32 (75 %)",
        f"{exits:.1f} of {last} ({percent(exits / last)})",
        "ours: all visual tokens take part in the test",
    )
    choice = stages["filter"]
    if choice:
        budget, whole = choice["budget"], document["model"]["visual_tokens"]
        part = share(budget) if isinstance(budget, float) else f"{budget} of {whole} ({share(budget / whole)})"
        yield (
            "visual tokens that go on after the filter layer",
            "10.3 of 576 (1.8 %), by a threshold",
            f"{part}, a budget",
            "ours: the cheapest tried budget within the tolerance",
        )


def _lens(document: dict[str, Any]) -> Iterator[Row]:
    if "lens" in document:
        median, last = document["lens"]["median_leading_layer"], document["model"]["layers"]
        yield (
            "logit lens: the answer's first word leads",
            "by layer 24 of 32 (75 %), one example",
            f"from layer {median:.0f} of {last} ({percent(median / last)}), median",
            "ours: leads from there to the last layer",
        )


def _method(document: dict[str, Any]) -> Iterator[Row]:
    by_name = {row["name"]: row for row in document.get("check", [])}
    dense, ours = by_name.get("dense"), by_name.get("proposed")
    if dense and ours:
        key = measure_of(document)
        before, after = (interval(row.get(key)) for row in (dense, ours))
        yield (
            "the whole method",
            "62.0 → 60.3 (GQA), 54 % of the FLOPs cut",
            f"{before} → {after}, {share(ours['flops_cut'])} of the FLOPs cut",
            "paper: visual tokens only, by formula; ours: the whole prompt, counted; other images than analysed",
        )
