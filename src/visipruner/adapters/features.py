"""What works with which family, declared by the adapters and tried by `tests/families`, as the table of the docs."""

from __future__ import annotations

from collections.abc import Sequence

from visipruner.adapters.base import Adapter

# Feature to what it means; every test in tests/families names the features it tries.
FEATURES: dict[str, str] = {
    "image": "one image in a prompt, of any size and number of crops the family has",
    "several images": "several unlike images in a prompt",
    "video": "a video in a prompt",
    "no image": "prompts without an image, alone and beside others in a batch: the plain model to the last bit",
    "batch": "unlike prompts in a batch, padded on either side: each gets what it gets alone",
    "cache": "decoding with a cache equals one full forward, and decoding without one",
    "beams": "beam search, with and without a cache",
    "next turn": "further text on the same cache",
    "new image": "a further image on the same cache",
    "sdpa": "attn_implementation='sdpa'",
    "eager": "attn_implementation='eager'",
    "prefix": "VisiPruner with shallow_visual='prefix'",
    "ffn": "VisiPruner with shallow_visual='ffn'",
    "each image": 'a budget for each image of a prompt (`scope="image"`)',
    "methods": "the registry's methods that look at the text decoder",
    "vision methods": "the registry's methods that look at the vision tower (`Adapter.vision`)",
    "probe": "analysis: knockouts, lenses and the like through `visipruner.analysis.probe.Probe`",
    "run": "`visipruner run` with the stock processor",
}


def table(adapters: Sequence[Adapter]) -> str:
    """Families by features in Markdown: yes, no, and numbered notes below."""
    notes: list[str] = []
    lines = [_row(["family", "`model_type`", *FEATURES]), _row(["---"] * (2 + len(FEATURES)))]
    for adapter in adapters:
        types = ", ".join(f"`{kind}`" for kind in adapter.model_types)
        lines.append(_row([adapter.family, types, *(_cell(adapter, feature, notes) for feature in FEATURES)]))
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1)), ""]
    lines += [_row(["family", "which rows are visual tokens"]), _row(["---"] * 2)]
    lines += [_row([adapter.family, adapter.visual]) for adapter in adapters]
    lines += ["", *(f"* *{feature}*: {meaning}." for feature, meaning in FEATURES.items())]
    return "\n".join(lines) + "\n"


def _cell(adapter: Adapter, feature: str, notes: list[str]) -> str:
    note = adapter.lacks.get(feature) or adapter.remarks.get(feature)
    word = "no" if feature in adapter.lacks or (feature == "vision methods" and not adapter.vision) else "yes"
    if note is None:
        return word
    if note not in notes:
        notes.append(note)
    return f"{word} ({notes.index(note) + 1})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
