"""Which methods work with which families and what `tests/families/test_methods.py` checks of each pair, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from visipruner.adapters.base import Adapter
from visipruner.contract.picture import picture_methods
from visipruner.contract.pruner import Pruner
from visipruner.pruners.dycoke import DyCoke
from visipruner.pruners.evs import EVS
from visipruner.pruners.registry import available, method_class
from visipruner.pruners.schedule import FixedSchedule
from visipruner.pruners.shortv import ShortV
from visipruner.pruners.visipruner import ReferenceVisiPruner, VisiPruner
from visipruner.words import spans

# What is checked of every method with every family.
INVARIANTS: dict[int, str] = {
    1: "text rows all stay; kept rows keep their order, and their positions or a compact method's without gaps",
    2: "decoding goes on at the unpruned length, and each layer's cache holds the rows that ran there",
    3: "an example of a batch of unlike prompts gets what it gets alone, padded on either side",
    4: "keeping everything, and a prompt without images, is the plain model to the last bit",
    5: "dropping rows is the full-length model with the attention edges to them cut, of images and, where the family "
    "reads them, of a video",
    6: "decoding with a cache is one full forward and decoding without a cache, under eager attention and, where the "
    "family has it, sdpa",
    7: "off is off: hooks, config and output are the plain model's again; a second `attach` is an error",
    8: "no tensor of the model or of the call is changed in place",
    9: "image tokens without pixels are an error",
}

# (method, invariant) to why it is not asked, or not in these words.
NOT_ASKED: dict[tuple[str, int], str] = {
    ("none", 5): "Nothing is dropped.",
    ("ivc", 5): "Nothing is dropped by itself; compositions are tried in `tests/pruners/test_ivc.py`.",
    ("vtw", 4): "No setting keeps everything; of 4, prompts without images are checked.",
}
MERGES = "Of 5: the full-length model's rows are overwritten with what the method merged where it merges."
FREEZES = "Of 5: no token leaves; the full-length model's visual rows are put back after a layer in which they pause."
SHRINKS = (
    "Not attached: an error that names `visipruner.chat.attached`. What it can do depends on the processor and the "
    "vision tower ([docs/evaluation.md](evaluation.md))."
)
NO_STATES = (
    "An error: no layer of these models has linear attention. Tried with Qwen3.5 in `tests/pruners/test_vcola.py`."
)
NO_TOWER = "An error: nobody said which patches of the vision tower the tokens are made of."


def tuned(name: str, depth: int) -> Pruner:
    """A method with settings that do something in a small model of random weights, whose pictures are no videos."""
    if name == "visipruner-reference":
        return replace(ReferenceVisiPruner.for_depth(depth), shallow_end=2, filter_layer=2, keep_tokens=3)
    by_hand: dict[str, Pruner] = {
        "dycoke": DyCoke(frame_tokens=1),
        "evs": EVS(frame_tokens=1, keep_ratio=0.5),
        "schedule": FixedSchedule(layers=(0, 1), keep=(3, 0)),
        "shortv": ShortV(layers=(0, 2)),
        "visipruner": VisiPruner(
            stages=("middle", "deep"), shallow_end=0, exit_votes=1, filter_threshold=0.99999, exit_threshold=0.9
        ),
    }
    return by_hand[name] if name in by_hand else method_class(name).for_depth(depth)


def is_refused(pruner: Pruner, adapter: Adapter) -> str | None:
    """Why this method is an error with this family, or None."""
    if picture_methods(pruner):
        return SHRINKS
    if pruner.reads_states:
        return NO_STATES
    return NO_TOWER if pruner.vision_layers(24) and not adapter.vision else None


def asked(method: str) -> list[int]:
    """The invariants that are checked in full."""
    return [number for number in INVARIANTS if (method, number) not in NOT_ASKED]


def table(adapters: Sequence[Adapter]) -> list[str]:
    """Lines of Markdown: every method of the registry by every family, notes and what the numbers mean below."""
    notes: list[str] = []
    lines = [row(["method", *(adapter.family for adapter in adapters)]), row(["---"] * (1 + len(adapters)))]
    for name in available():
        pruner = method_class(name).for_depth(32)
        lines.append(row([f"`{name}`", *(_cell(pruner, adapter, notes) for adapter in adapters)]))
    letters = [f"* ({chr(97 + place)}) {note}" for place, note in enumerate(notes)]
    return [*lines, "", *(f"{number}. {meaning}." for number, meaning in INVARIANTS.items()), "", *letters]


def _cell(pruner: Pruner, adapter: Adapter, notes: list[str]) -> str:
    refused = is_refused(pruner, adapter)
    said = [refused]
    if refused is None:
        said = [NOT_ASKED.get((pruner.name, number)) for number in INVARIANTS]
        said.append(MERGES if pruner.merges else None)
        said.append(FREEZES if any(pruner.routing(layer).freezes_visual for layer in range(32)) else None)
        said.append(adapter.remarks.get("vision methods") if pruner.vision_layers(24) else None)
    found = [note for note in said if note is not None]
    notes += [note for note in found if note not in notes]
    letters = ", ".join(chr(97 + notes.index(note)) for note in found)
    word = "error" if refused else spans(asked(pruner.name), ", ")
    return f"{word} ({letters})" if letters else word


def row(cells: Sequence[str]) -> str:
    """One of a table's lines."""
    return f"| {' | '.join(cells)} |"
