"""Sections on what was changed in the model: edges cut, visual tokens skipped, discarded or gone from the cache."""

from __future__ import annotations

from visipruner.analysis.report.content import Document, Picture, Section, Table
from visipruner.analysis.report.figures import effects
from visipruner.analysis.report.words import (
    MEASURE_NAMES,
    TEACHER_FORCED,
    basis,
    count_of,
    evidence_of,
    interval,
    measure_of,
    point,
    span,
)

_PAIRED = "Whiskers hold the spread of the samples too; the change from dense is surer than they look."


def sweeps(document: Document) -> Section | None:
    """The sweeps in the measures that the first figure leaves out."""
    if "sweeps" not in document:
        return None
    shown = {measure_of(document), evidence_of(document)}
    measures = [measure for measure in ("accuracy", "agreement", "kl") if measure not in shown]
    if document["dense"]["accuracy"] is None and "accuracy" in measures:
        measures.remove("accuracy")
    if not measures:
        return None
    window = document["settings"]["plan"]["window"]
    words = {
        "agreement": "Share of samples whose answer stays that of the dense model, right or wrong.",
        "kl": "Mean KL divergence of the answer tokens' distributions from the dense model's, in nats; linear below "
        "0.01. It sees changes that do not (yet) change an answer.",
    }
    pictures = [
        Picture(
            f"Knockouts: {MEASURE_NAMES[measure]}",
            effects.sweeps(document, measure),
            f"{words[measure]} Windows of {count_of(window)} are drawn at their middle. {basis(document)} "
            f"{TEACHER_FORCED}",
        )
        for measure in measures
    ]
    return Section("knockouts", "Knockouts in other measures", pictures=pictures)


def shallow(document: Document) -> Section | None:
    """Mass or content: the ablations of the first layers."""
    data = document.get("shallow")
    if not data:
        return None
    count, measure = document["settings"]["plan"]["shallow"], measure_of(document)
    pictures = [
        Picture(
            f"{span(0, count - 1).capitalize()} changed: {MEASURE_NAMES[shown]}",
            effects.conditions(document, "shallow", shown),
            f"Each row changes text → visual attention in {span(0, count - 1)} as named. {unit} {basis(document)} "
            "Not shown: the same in other layers.",
        )
        for shown, unit in ((measure, _PAIRED), ("kl", "Mean, in nats; linear below 0.01."))
    ]
    rows = [
        (
            effects.CONDITIONS.get(name, name),
            interval(point(data["accuracy"], place)),
            interval(point(data["agreement"], place)),
            interval(point(data["kl"], place), 1, 4, ""),
        )
        for place, name in enumerate(data["condition"])
    ]
    table = Table("All conditions", ("condition", "accuracy", "same answer", "KL, nats"), rows, "95 % over images.")
    return Section(
        "shallow",
        "First layers: mass or content?",
        [
            "If the answers survive when all the attention that text pays to the image is moved onto a single visual "
            "token, but not when it is taken away, then the first layers need a place to put attention and not what "
            "the image says."
        ],
        pictures,
        [table],
    )


def removal(document: Document) -> Section | None:
    """Skip, freeze (a layer, a block), discard, cache."""
    pictures = []
    shown = {measure_of(document): "", "kl": "Mean KL divergence in nats, linear below 0.01."}
    if "skip" in document or "freeze" in document:
        pictures += [
            Picture(
                f"Skipping or freezing one layer against discarding: {MEASURE_NAMES[measure]}",
                effects.skip_and_discard(document, measure),
                "Visual tokens pass layer k by unchanged, unseen in it (skipped) or seen in it as they are (frozen), "
                "and are back in the next, against leaving for good at k. Only the layers with a whisker were tried. "
                f"{unit} {basis(document)}",
            )
            for measure, unit in shown.items()
        ]
    if "freeze_blocks" in document:
        block = document["settings"]["plan"]["block"]
        pictures += [
            Picture(
                f"Freezing {count_of(block)} in a row: {MEASURE_NAMES[measure]}",
                effects.frozen_blocks(document, measure),
                f"Visual tokens pass {count_of(block)} from k on by unchanged, but text still sees them there. {unit} "
                f"{basis(document)}",
            )
            for measure, unit in shown.items()
        ]
    if "cache" in document:
        pictures += [
            Picture(
                f"Visual keys gone while decoding: {MEASURE_NAMES[measure]}",
                effects.conditions(document, "cache", measure),
                f"Visual keys and values of these layers leave the cache once the prompt is read. {unit} "
                f"{basis(document)} The first answer token is predicted before that, so answers of one token cannot "
                "change.",
            )
            for measure, unit in shown.items()
        ]
    return (
        Section("removal", "Skipping, freezing, discarding, emptying the cache", pictures=pictures)
        if pictures
        else None
    )
