"""Sections on choosing tokens and settings, and on the analysis itself: what it cost, how it was made."""

from __future__ import annotations

import json
from typing import Any

from visipruner.analysis.report import figures, words
from visipruner.analysis.report.style import picture
from visipruner.analysis.report.words import Document, Section, Table


def scores(document: Document) -> Section | None:
    """Scores at equal budget."""
    data = document.get("scores")
    if not data:
        return None
    measures = list(dict.fromkeys((words.measure_of(document), "kl")))
    whole, largest = document["model"]["visual_tokens"], data["budget"][-1]
    pictures = [
        picture(
            f"{words.some(tried, whole)} tokens go on: {words.MEASURE_NAMES[measure]}",
            figures.scores(document, tried, measure),
            f"When only the {words.some(tried)} visual tokens with the highest score in a layer go on after it. "
            f"{words.basis(document)} Nothing else is pruned: no shallow stage, no exit.",
        )
        for measure in measures
        for tried in data["budget"]
    ]
    pictures += [
        picture(
            "Influence at every budget",
            figures.budgets(document, "kl"),
            "KL divergence with only the most influential tokens left, nats, linear below 0.01. "
            f"{words.basis(document)} Budgets in between were not tried.",
        ),
        picture(
            f"Which tokens: overlap with influence's {words.budget(largest)}",
            figures.scores(document, largest, "overlap"),
            f"Share of the {words.some(largest)} tokens that a score chooses in common with influence. "
            f"{words.basis(document)}",
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
        curves = [words.curve_at(data[measure], number, b) for b, _ in cells]
        points = [words.point(curve, place) for curve, (_, place) in zip(curves, cells, strict=True)]
        told = [words.interval(found, 1, 3, "") if measure == "kl" else words.interval(found) for found in points]
        rows.append((figures.SCORES.get(name, name), *told))
    head = [f"{words.budget(data['budget'][b])} after layer {data['layer'][place]}" for b, place in cells]
    return Table(
        f"Scores at equal budget: {words.MEASURE_NAMES[measure]}{', nats' if measure == 'kl' else ''}",
        ("score", *head),
        rows,
        "95 % intervals over images. All scores saw the same samples, so overlapping intervals do not say that two are "
        "equal.",
    )


def check(document: Document) -> Section | None:
    """The proposed settings, and how they did on other images."""
    rows, stages = document.get("check"), document.get("stages")
    if not rows and not stages:
        return None
    tables, text, code = [], [], ""
    if rows:
        told = [
            (
                row["name"],
                words.interval(row["accuracy"]),
                words.interval(row["agreement"]),
                words.share(row["flops_cut"]),
            )
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
    if stages and stages["filter"]:
        text.append(_filter(stages["filter"], stages["metric"]))
    if stages and stages["pruner"]:
        if attempts := stages.get("attempts"):
            proposed = next(attempt for attempt in attempts if attempt["settings"] == stages["pruner"])
            text.append(
                "The proposal, all parts at work together, on the analysed samples: "
                f"{_loss(proposed['loss'], stages['metric'])}; its parts by themselves lose "
                f"{words.loss(proposed['parts_loss'], stages['metric'])} in sum ({len(attempts)} combinations tried)."
            )
        code = json.dumps(stages["pruner"], indent=2)
    else:
        text.append("The data support no settings: see the notes at the top of the page.")
    if stages and (looks := document.get("second_look")) and looks["pruner"]:
        chosen = next(attempt for attempt in looks["attempts"] if attempt["settings"] == looks["pruner"])
        text.append(
            f"A second look instead of the filter ({len(looks['attempts'])} schedules tried), saved in second-look, on "
            f"the analysed samples: {_loss(chosen['loss'], stages['metric'])}."
        )
    return Section("check", "Proposed settings", text, tables=tables, code=code)


def _filter(choice: dict[str, Any], metric: str) -> str:
    fires = "that is the first layer looked at after the shallow stage, so no threshold has to find it."
    if choice["threshold"] is not None:
        fires = (
            f"a cosine threshold of {choice['threshold']:.6g} would fire there, give or take a layer, in "
            f"{words.percent(choice['hits'])} of samples."
        )
    return (
        f"The filter by itself: after layer {choice['layer']} the {words.some(choice['budget'])} most influential "
        f"tokens can go on ({_loss(choice['loss'], metric)}); {fires}"
    )


def _loss(found: dict[str, float], metric: str) -> str:
    lost = f"{words.loss(found['value'], metric)} lost"
    if found["low"] is None:
        return lost
    return f"{lost}, 95 %: {words.loss(found['low'], metric)} to {words.loss(found['high'], metric)}"


def cost(document: Document) -> Section:
    """Seconds by part."""
    spent, count = document["seconds"]["by_part"], document["dense"]["samples"]
    whole = sum(spent.values())
    rows = [
        (name, words.seconds(value), f"{value / count:.1f} s", words.percent(value / whole) if whole else "–")
        for name, value in sorted(spent.items(), key=lambda item: -item[1])
    ]
    table = Table(
        "Seconds by part",
        ("part", "all samples", "per sample", "share"),
        [*rows, ("all", words.seconds(whole), f"{whole / count:.1f} s", "")],
        "Wall time on the machine that ran this, all samples together, resumed runs included.",
    )
    return Section("cost", "What it cost", tables=[table])


def settings(document: Document) -> Section:
    """Model, settings, versions."""
    told = {**document["model"], **document["settings"], **document["versions"]}
    rows = [(name.replace("_", " "), _plain(value)) for name, value in told.items()]
    table = Table("Settings and versions", ("name", "value"), rows, "", numeric=False)
    return Section("settings", "Settings", tables=[table])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return " / ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
