"""Sections on what was looked at (attention, lens, tests) and what was changed (edges, visual tokens)."""

from __future__ import annotations

from collections import Counter
from functools import partial

from visipruner.analysis.report import figures, words
from visipruner.analysis.report.style import picture
from visipruner.analysis.report.words import Document, Section, Table

_PAIRED = "Whiskers hold the spread of the samples too; the change from dense is surer than they look."
_MEASURES = {
    "accuracy": "",
    "agreement": "Share of samples whose answer stays that of the dense model, right or wrong.",
    "kl": "Mean KL divergence of the answer tokens' distributions from the dense model's, in nats; linear below 0.01. "
    "It sees changes that do not (yet) change an answer.",
}


def sweeps(document: Document) -> Section | None:
    """The sweeps in the measures that the first figure leaves out."""
    if "sweeps" not in document:
        return None
    left_out = {words.measure_of(document), words.evidence_of(document)}
    if document["dense"]["accuracy"] is None:
        left_out.add("accuracy")
    window = document["settings"]["plan"]["window"]
    pictures = [
        picture(
            f"Knockouts: {words.MEASURE_NAMES[measure]}",
            figures.sweeps(document, measure),
            f"{said} Windows of {words.count_of(window)} are drawn at their middle. {words.basis(document)} "
            f"{words.TEACHER_FORCED}",
        )
        for measure, said in _MEASURES.items()
        if measure not in left_out
    ]
    return Section("knockouts", "Knockouts in other measures", pictures=pictures) if pictures else None


def shallow(document: Document) -> Section | None:
    """Mass or content: the ablations of the first layers."""
    data = document.get("shallow")
    if not data:
        return None
    first = words.span(0, document["settings"]["plan"]["shallow"] - 1)
    pictures = [
        picture(
            f"{first.capitalize()} changed: {words.MEASURE_NAMES[measure]}",
            figures.conditions(document, measure, "shallow"),
            f"Each row changes text → visual attention in {first} as named. {unit} {words.basis(document)} Not shown: "
            "the same in other layers.",
        )
        for measure, unit in ((words.measure_of(document), _PAIRED), ("kl", "Mean, in nats; linear below 0.01."))
    ]
    rows = [
        (
            figures.CONDITIONS.get(name, name),
            words.interval(words.point(data["accuracy"], place)),
            words.interval(words.point(data["agreement"], place)),
            words.interval(words.point(data["kl"], place), 1, 4, ""),
        )
        for place, name in enumerate(data["condition"])
    ]
    return Section(
        "shallow",
        "First layers: mass or content?",
        [
            "If the answers survive when all the attention that text pays to the image is moved onto a single visual "
            "token, but not when it is taken away, then the first layers need a place to put attention and not what "
            "the image says."
        ],
        pictures,
        [Table("All conditions", ("condition", "accuracy", "same answer", "KL, nats"), rows, "95 % over images.")],
    )


def removal(document: Document) -> Section | None:
    """Skip, freeze (a layer, a block), discard, cache."""
    block = words.count_of(document["settings"]["plan"]["block"])
    experiments = (
        (
            {"skip", "freeze"},
            "Skipping or freezing one layer against discarding",
            figures.skip_and_discard,
            "Visual tokens pass layer k by unchanged, unseen in it (skipped) or seen in it as they are (frozen), and "
            "are back in the next, against leaving for good at k. Only the layers with a whisker were tried.",
            "",
        ),
        (
            {"freeze_blocks"},
            f"Freezing {block} in a row",
            figures.frozen_blocks,
            f"Visual tokens pass {block} from k on by unchanged, but text still sees them there.",
            "",
        ),
        (
            {"cache"},
            "Visual keys gone while decoding",
            partial(figures.conditions, part="cache"),
            "Visual keys and values of these layers leave the cache once the prompt is read.",
            " The first answer token is predicted before that, so answers of one token cannot change.",
        ),
    )
    pictures = [
        picture(
            f"{title}: {words.MEASURE_NAMES[measure]}",
            draw(document, measure),
            f"{what} {unit} {words.basis(document)}{limits}",
        )
        for parts, title, draw, what, limits in experiments
        if parts & document.keys()
        for measure, unit in (
            (words.measure_of(document), ""),
            ("kl", "Mean KL divergence in nats, linear below 0.01."),
        )
    ]
    title = "Skipping, freezing, discarding, emptying the cache"
    return Section("removal", title, pictures=pictures) if pictures else None


def sinks(document: Document) -> Section | None:
    """Attention on the image, and lengths of values."""
    data = document.get("attention")
    if not data:
        return None
    mass = {"visual tokens": data["mass"], "text before the image": data["system_mass"]}
    norms = {
        "10 most attended visual tokens": data["l1_top_visual"],
        "all visual tokens": data["l1_visual"],
        "most attended token of all": data["l1_text_sink"],
        "question tokens": data["l1_text"],
    }
    return Section(
        "sinks",
        "Attention sinks",
        ["A token that draws much attention while its value vector is short adds little: it is a sink."],
        [
            picture(
                "Where the last row's attention goes",
                figures.seen(document, mass, "share of attention, %"),
                "Sum of the last prompt row's weights, heads averaged; the rest lies on the question. "
                f"{words.basis(document)} A weight is no proof of use.",
            ),
            picture(
                "Length of value vectors",
                figures.seen(document, norms, "L1 norm of values"),
                f"Mean over heads of ‖v_j‖₁, in the model's own units. {words.basis(document)} Lengths compare within "
                "a layer, not between layers.",
            ),
        ],
    )


def stability(document: Document) -> Section | None:
    """Which top tokens questions and layers share."""
    pictures, curves = [], {}
    if attention := document.get("attention"):
        curves["by attention"] = attention["overlap_of_layers"]
        questions = attention["overlap_of_questions"]
        if questions.get("same_image") or questions.get("other_image"):
            caption = (
                f"Share of the 10 most attended visual tokens that two samples have in common: {questions['pairs']} "
                "pairs of questions about one image (95 % over images), and neighbouring samples with two images (mean "
                "only). High overlap for one image means that the question does not matter there; high overlap for two "
                "images, that the place in the grid does."
            )
            drawn = figures.overlap_of_questions(document)
            pictures.append(picture("Does the question decide where the model looks?", drawn, caption))
    if influence := document.get("influence"):
        curves["by influence"] = influence["stability"]  # null in the last layer, which nothing follows
    if curves:
        pictures.append(
            picture(
                "Do the same tokens matter in the next layer?",
                figures.seen(document, curves, "shared with the next layer, %"),
                "Share of a layer's 10 top visual tokens that are also among the next layer's. "
                f"{words.basis(document)} The order within the ten is not looked at.",
            )
        )
    return Section("stability", "Token stability", pictures=pictures) if pictures else None


def lens(document: Document) -> Section | None:
    """The logit lens over all samples."""
    data = document.get("lens")
    if not data:
        return None
    leads = {int(layer): count for layer, count in data["leading_layer"].items()}
    return Section(
        "lens",
        "What each layer would say",
        [
            "The logit lens reads a layer's state through the last layer's norm and head, which were not trained for "
            "it: early layers may know more than it shows. Words of single samples are in the explorer above."
        ],
        [
            picture(
                "The answer's first token",
                figures.seen(document, {"dense answer": data["answer"]}, "probability"),
                "Probability that the lens gives the first token of the dense model's answer, right or wrong, after "
                f"each layer. {words.basis(document)}",
            ),
            picture(
                "From where on it leads",
                figures.counts({"samples": leads}, document["model"]["layers"], "layer from which the answer leads"),
                "First layer after which the answer's first token is the lens's favourite to the end; median "
                f"{data['median_leading_layer']:.0f}. {document['dense']['samples']} samples.",
            ),
        ],
    )


def tests(document: Document) -> Section | None:
    """Where the paper's filter and exit tests fire."""
    pictures = []
    count = f"{document['dense']['samples']} samples"
    if influence := document.get("influence"):
        fires = {"some cos(o, o − c_j) < 0.995": influence["would_filter"]}
        pictures += [
            picture(
                "Where the paper's filter test fires",
                figures.seen(document, fires, "samples, %"),
                "Share of samples in which the test would fire in a layer, each layer for itself. "
                f"{words.basis(document)}",
            ),
            picture(
                "How far a single token turns the output",
                figures.distance(document),
                f"Per sample the largest 1 − cos(o, o − c_j) of any visual token. {count}; the band holds the middle "
                "80 % of them, it is not a confidence interval. Thresholds are LLaVA-1.5's.",
            ),
        ]
    if stages := document.get("stages"):
        groups = {f"{test} layer": Counter(stages[f"paper_{test}_layers"]) for test in ("filter", "exit")}
        pictures.append(
            picture(
                "Filter and exit layers by the paper's tests",
                figures.counts(groups, document["model"]["layers"], "layer", "never"),
                "First firing after the shallow stage, and the layer after two quiet ones in a row, with all visual "
                f"tokens taking part. {count}. No pruned runs were made for it.",
            )
        )
    return Section("tests", "The paper's own tests", pictures=pictures) if pictures else None
