"""Sections on choosing: scores at equal budget, the proposed settings, the paper beside them."""

from __future__ import annotations

import json
from typing import Any

from visipruner.analysis.report.beside_paper import comparison
from visipruner.analysis.report.content import Document, Picture, Section, Table
from visipruner.analysis.report.figures import budgets
from visipruner.analysis.report.words import (
    MEASURE_NAMES,
    basis,
    budget,
    curve_at,
    interval,
    loss,
    measure_of,
    percent,
    point,
    share,
    some,
)


def scores(document: Document) -> Section | None:
    """Scores at equal budget."""
    data = document.get("scores")
    if not data:
        return None
    measures = list(dict.fromkeys((measure_of(document), "kl")))
    whole, largest = document["model"]["visual_tokens"], data["budget"][-1]
    pictures = [
        Picture(
            f"{some(tried, whole)} tokens go on: {MEASURE_NAMES[measure]}",
            budgets.scores(document, tried, measure),
            f"When only the {some(tried)} visual tokens with the highest score in a layer go on after it. "
            f"{basis(document)} Nothing else is pruned: no shallow stage, no exit.",
        )
        for measure in measures
        for tried in data["budget"]
    ]
    pictures += [
        Picture(
            "Influence at every budget",
            budgets.budgets(document, "kl"),
            f"KL divergence with only the most influential tokens left, nats, linear below 0.01. {basis(document)} "
            "Budgets in between were not tried.",
        ),
        Picture(
            f"Which tokens: overlap with influence's {budget(largest)}",
            budgets.scores(document, largest, "overlap"),
            f"Share of the {some(largest)} tokens that a score chooses in common with influence. {basis(document)}",
        ),
    ]
    tables = [_score_table(data, measure) for measure in measures]
    return Section("scores", "Which score chooses best?", (), pictures, tables)


def _score_table(data: dict[str, Any], measure: str) -> Table:
    """Every score at every budget, at an early, a middle and a late layer."""
    count = len(data["layer"])
    cells = [
        (b, i) for b in range(len(data["budget"])) for i in sorted({count // 5, count // 2, count - 1 - count // 5})
    ]
    rows = []
    for number, name in enumerate(data["score"]):
        curves = [curve_at(data[measure], number, b) for b, _ in cells]
        points = [point(curve, place) for curve, (_, place) in zip(curves, cells, strict=True)]
        told = [interval(found, 1, 3, "") if measure == "kl" else interval(found) for found in points]
        rows.append((budgets.SCORES.get(name, name), *told))
    head = [f"{budget(data['budget'][b])} after layer {data['layer'][place]}" for b, place in cells]
    return Table(
        f"Scores at equal budget: {MEASURE_NAMES[measure]}{', nats' if measure == 'kl' else ''}",
        ("score", *head),
        rows,
        "95 % intervals over images. All scores saw the same samples, so overlapping intervals do not say that two are "
        "equal.",
    )


def check(document: Document) -> Section | None:
    """The proposed settings, and how they did on other images."""
    rows = document.get("check")
    stages = document.get("stages")
    if not rows and not stages:
        return None
    tables = []
    if rows:
        told = [
            (row["name"], *(interval(row[key]) for key in ("accuracy", "agreement")), share(row["flops_cut"]))
            for row in rows
        ]
        tables.append(
            Table(
                "Pruned runs on images that were not analysed",
                ("settings", "accuracy", "same answer as dense", "FLOPs cut (counted)"),
                told,
                f"{rows[0]['samples']} samples, 95 % intervals over images. Real pruning and greedy decoding; FLOPs "
                "are those of the whole prompt in the decoder, counted, not seconds.",
            )
        )
    text, code = [], ""
    choice = stages["filter"] if stages else None
    if stages and choice:
        fires = "that is the first layer looked at after the shallow stage, so no threshold has to find it."
        if choice["threshold"] is not None:
            fires = (
                f"a cosine threshold of {choice['threshold']:.6g} would fire there, give or take a layer, in "
                f"{percent(choice['hits'])} of samples."
            )
        text.append(
            f"The filter by itself: after layer {choice['layer']} the {some(choice['budget'])} most influential tokens "
            f"can go on ({_loss(choice['loss'], stages['metric'])}); {fires}"
        )
    if stages and stages["pruner"]:
        if attempts := stages.get("attempts"):
            proposed = next(attempt for attempt in attempts if attempt["settings"] == stages["pruner"])
            text.append(
                "The proposal, all parts at work together, on the analysed samples: "
                f"{_loss(proposed['loss'], stages['metric'])}; its parts by themselves lose "
                f"{loss(proposed['parts_loss'], stages['metric'])} in sum ({len(attempts)} combinations tried)."
            )
        code = json.dumps(stages["pruner"], indent=2)
    else:
        text.append("The data support no settings: see the notes at the top of the page.")
    return Section("check", "Proposed settings", text, tables=tables, code=code)


def _loss(found: dict[str, float], metric: str) -> str:
    lost = f"{loss(found['value'], metric)} lost"
    if found["low"] is None:
        return lost
    return f"{lost}, 95 %: {loss(found['low'], metric)} to {loss(found['high'], metric)}"


def paper(document: Document) -> Section | None:
    """The paper's numbers beside ours."""
    table = comparison(document)
    return Section("paper", "Beside the paper", tables=[table]) if table else None
