"""What an experiment changes in a reading: edges that are cut, zeroed or merged, rows that rest. Data only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from visipruner.analysis.reading import Reading, Rows
from visipruner.errors import ConfigError

How = Literal["cut", "zero", "merge", "swap"]
HOWS: tuple[How, ...] = ("cut", "zero", "merge", "swap")


@dataclass(frozen=True, eq=False)
class EdgeEdit:
    """Attention edges from rows `src` to rows `dst`, both `[n]` bool.

    Attributes:
        how: "cut" before the softmax (the rest is renormalised), "zero" after it (the mass is lost), "merge": the
            summed mass goes to row `onto`, an attention sink, or "swap": `src` sees the keys and values that rows `dst`
            have in `other`, a reading of the same rows with another picture.
    """

    src: Tensor
    dst: Tensor
    how: How = "cut"
    onto: int | None = None
    other: Reading | None = None


@dataclass(frozen=True, eq=False)
class Variant:
    """One altered run of the layers.

    Attributes:
        edits: by layer, the edges that are not as in the dense model.
        start: the first layer to run; what lies before is taken from `parent`.
        parent: another variant's place in the same sweep whose states this one continues with at `start`; None for
            the dense reading.
        resting: by layer, `[n]` bool, rows whose states pass that layer unchanged.
    """

    edits: Mapping[int, tuple[EdgeEdit, ...]] = field(default_factory=dict)
    start: int = 0
    parent: int | None = None
    resting: Mapping[int, Tensor] = field(default_factory=dict)


def knockout(
    reading: Reading,
    src: Rows,
    dst: Rows,
    layers: Iterable[int],
    how: How = "cut",
    onto: int | None = None,
    other: Reading | None = None,
) -> Variant:
    """Edges `src` -> `dst` changed in `layers`. `onto` is a row, for "merge" only; `other` a reading, for "swap" only.

    Raises ConfigError for an unknown `how`, layers the model does not have, a merge without a place, or a swap with a
    reading whose visual tokens are not at the same rows.
    """
    chosen = sorted(set(layers))
    if how not in HOWS:
        raise ConfigError(f"how must be one of {', '.join(map(repr, HOWS))}, got {how!r}.")
    if chosen and not 0 <= chosen[0] <= chosen[-1] < len(reading.layers):
        raise ConfigError(f"layers must lie in 0 .. {len(reading.layers) - 1}, got {chosen[0]} .. {chosen[-1]}.")
    if how == "merge" and (onto is None or not 0 <= onto < reading.length):
        raise ConfigError(f"merge needs the row that takes the mass: onto in 0 .. {reading.length - 1}, got {onto}.")
    if how == "swap" and (other is None or not torch.equal(other.visual, reading.visual)):
        raise ConfigError("swap needs other: a reading of the same question and a picture of the same size.")
    edit = EdgeEdit(reading.rows(src), reading.rows(dst), how, onto, other)
    return Variant(dict.fromkeys(chosen, (edit,)), start=chosen[0] if chosen else len(reading.layers))


def combined(*variants: Variant) -> Variant:
    """All edits of several variants at once, from the dense reading."""
    edits: dict[int, tuple[EdgeEdit, ...]] = {}
    resting: dict[int, Tensor] = {}
    for variant in variants:
        for layer, some in variant.edits.items():
            edits[layer] = edits.get(layer, ()) + some
        for layer, rows in variant.resting.items():
            resting[layer] = resting[layer] | rows if layer in resting else rows
    return Variant(edits, min((variant.start for variant in variants), default=0), None, resting)


def rows_to_run(reading: Reading, variants: Sequence[Variant]) -> Tensor:
    """`[r]` long: the rows whose states can differ from the dense reading's in any of `variants`, to the end.

    In a causal model these are all rows from the first that loses or gains an edge; earlier ones need not run again.
    """
    first = reading.last
    for edit, allowed in _distinct_edits(reading, variants):
        touched = (edit.src & (allowed & edit.dst).any(-1)).nonzero()
        first = min(first, int(touched[0]) if touched.numel() else first)
    for variant in variants:
        for rows in variant.resting.values():
            first = min(first, int(rows.nonzero()[0]))
    masks = {id(states.allowed): states.allowed for states in reading.layers}
    sees_later = any(bool(allowed[:first, first:].any()) for allowed in masks.values())
    return torch.arange(0 if sees_later else first, reading.length)


def _distinct_edits(reading: Reading, variants: Sequence[Variant]) -> list[tuple[EdgeEdit, Tensor]]:
    found = {}
    for variant in variants:
        for layer, edits in variant.edits.items():
            allowed = reading.layers[layer].allowed
            found.update({(id(edit), id(allowed)): (edit, allowed) for edit in edits})
    return list(found.values())
