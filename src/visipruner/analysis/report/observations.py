"""Sections on what was only looked at: attention, sinks, stability, the lens, the paper's tests."""

from __future__ import annotations

from collections import Counter

from visipruner.analysis.report.content import Document, Picture, Section
from visipruner.analysis.report.figures import looks
from visipruner.analysis.report.words import (
    basis,
)


def sinks(document: Document) -> Section | None:
    """Attention on the image, and lengths of values."""
    data = document.get("attention")
    if not data:
        return None
    last = document["model"]["layers"]
    mass = [("visual tokens", data["mass"]), ("text before the image", data["system_mass"])]
    norms = [
        ("10 most attended visual tokens", data["l1_top_visual"]),
        ("all visual tokens", data["l1_visual"]),
        ("most attended token of all", data["l1_text_sink"]),
        ("question tokens", data["l1_text"]),
    ]
    return Section(
        "sinks",
        "Attention sinks",
        ["A token that draws much attention while its value vector is short adds little: it is a sink."],
        [
            Picture(
                "Where the last row's attention goes",
                looks.curves_over_layers(mass, "share of attention, %", last, "mass", 100),
                f"Sum of the last prompt row's weights, heads averaged; the rest lies on the question. "
                f"{basis(document)} A weight is no proof of use.",
            ),
            Picture(
                "Length of value vectors",
                looks.curves_over_layers(norms, "L1 norm of values", last, "norms"),
                f"Mean over heads of ‖v_j‖₁, in the model's own units. {basis(document)} Lengths compare within a "
                "layer, not between layers.",
            ),
        ],
    )


def stability(document: Document) -> Section | None:
    """Which top tokens questions and layers share."""
    pictures, last = [], document["model"]["layers"]
    attention, influence = document.get("attention"), document.get("influence")
    questions = attention["overlap_of_questions"] if attention else {}
    if questions.get("same_image") or questions.get("other_image"):
        pairs = questions["pairs"]
        pictures.append(
            Picture(
                "Does the question decide where the model looks?",
                looks.overlap_of_questions(document),
                f"Share of the 10 most attended visual tokens that two samples have in common: {pairs} pairs of "
                "questions about one image (95 % over images), and neighbouring samples with two images (mean only). "
                "High overlap for one image means that the question does not matter there; high overlap for two "
                "images, that the place in the grid does.",
            )
        )
    curves = []
    if attention:
        curves.append(("by attention", attention["overlap_of_layers"]))
    if influence:
        curves.append(("by influence", influence["stability"]))  # null in the last layer, which nothing follows
    if curves:
        pictures.append(
            Picture(
                "Do the same tokens matter in the next layer?",
                looks.curves_over_layers(curves, "shared with the next layer, %", last, "stability", 100),
                f"Share of a layer's 10 top visual tokens that are also among the next layer's. {basis(document)} The "
                "order within the ten is not looked at.",
            )
        )
    return Section("stability", "Token stability", pictures=pictures) if pictures else None


def lens(document: Document) -> Section | None:
    """The logit lens over all samples."""
    data = document.get("lens")
    if not data:
        return None
    last = document["model"]["layers"]
    leads = Counter({int(layer): count for layer, count in data["leading_layer"].items()})
    return Section(
        "lens",
        "What each layer would say",
        [
            "The logit lens reads a layer's state through the last layer's norm and head, which were not trained for "
            "it: early layers may know more than it shows. Words of single samples are in the explorer above."
        ],
        [
            Picture(
                "The answer's first token",
                looks.curves_over_layers([("dense answer", data["answer"])], "probability", last, "answer"),
                "Probability that the lens gives the first token of the dense model's answer, right or wrong, after "
                f"each layer. {basis(document)}",
            ),
            Picture(
                "From where on it leads",
                looks.counts([("samples", leads)], last, "layer from which the answer leads", "", "leads"),
                f"First layer after which the answer's first token is the lens's favourite to the end; median "
                f"{data['median_leading_layer']:.0f}. {document['dense']['samples']} samples.",
            ),
        ],
    )


def tests(document: Document) -> Section | None:
    """Where the paper's filter and exit tests fire."""
    pictures = []
    influence, stages = document.get("influence"), document.get("stages")
    last = document["model"]["layers"]
    if influence:
        fires = looks.curves_over_layers(
            [("some cos(o, o − c_j) < 0.995", influence["would_filter"])], "samples, %", last, "would-filter", 100
        )
        pictures += [
            Picture(
                "Where the paper's filter test fires",
                fires,
                f"Share of samples in which the test would fire in a layer, each layer for itself. {basis(document)}",
            ),
            Picture(
                "How far a single token turns the output",
                looks.distance(document),
                f"Per sample the largest 1 − cos(o, o − c_j) of any visual token. {document['dense']['samples']} "
                "samples; the band holds the middle 80 % of them, it is not a confidence interval. Thresholds are "
                "LLaVA-1.5's.",
            ),
        ]
    if stages:
        groups = [
            ("filter layer", Counter(stages["paper_filter_layers"])),
            ("exit layer", Counter(stages["paper_exit_layers"])),
        ]
        pictures.append(
            Picture(
                "Filter and exit layers by the paper's tests",
                looks.counts(groups, last, "layer", "never", "tests"),
                "First firing after the shallow stage, and the layer after two quiet ones in a row, with all visual "
                f"tokens taking part. {document['dense']['samples']} samples. No pruned runs were made for it.",
            )
        )
    return Section("tests", "The paper's own tests", pictures=pictures) if pictures else None
