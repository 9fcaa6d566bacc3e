"""Which patches the visual tokens of a prompt are made of, in the numbers of what the vision tower encoded for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from visipruner.adapters.towers import Encoded, Kind, TokenPatches
from visipruner.contract.vision_view import Crop, VisionView


@dataclass(frozen=True, eq=False)
class PatchTable:
    """What the tower encoded, as tokens.

    Attributes:
        kind: of the first call. patches, shares, prefix: as in `TokenPatches`, counted through `pictures`.
        pictures: numbers of the pictures among all that the tower saw. starts: where each picture's patches begin, and
            the last one's end.
    """

    kind: Kind
    patches: Tensor
    shares: Tensor | None
    prefix: int
    pictures: list[int]
    starts: list[int]

    @classmethod
    def of(cls, found: TokenPatches | None, seen: Encoded, first: int) -> Self | None:
        """The table of one call, whose pictures start at number `first`; None where it does not fit its tokens."""
        if found is None or len(found.patches) != seen.tokens:
            return None
        starts = [0, *accumulate(rows - found.prefix for rows in seen.rows)]
        pictures = list(range(first, first + len(seen.rows)))
        table = cls(seen.kind, found.patches, found.shares, found.prefix, pictures, starts)
        return table if int(found.patches.max()) < starts[-1] else None

    def followed_by(self, other: PatchTable) -> PatchTable:
        """Both as one."""
        both, end = (self, other), self.starts[-1]
        wide = max(table.patches.shape[1] for table in both)
        room = [(0, wide - table.patches.shape[1]) for table in both]
        shares = [torch.full(table.patches.shape, 1 / table.patches.shape[1]) for table in both]
        shares = [even if table.shares is None else table.shares for table, even in zip(both, shares, strict=True)]
        return PatchTable(
            self.kind,
            torch.cat([pad(self.patches, room[0]), pad(other.patches + end, room[1])]),
            torch.cat([pad(part, more) for part, more in zip(shares, room, strict=True)]),
            self.prefix,
            self.pictures + other.pictures,
            self.starts + [end + start for start in other.starts[1:]],
        )

    def cut(self, tokens: Tensor) -> tuple[list[int], Tensor, Tensor | None]:
        """Of some `tokens` `[p]`: their pictures, and patches and shares counted through these."""
        patches, shares = self.patches[tokens], None if self.shares is None else self.shares[tokens]
        starts = torch.tensor(self.starts)
        owner = torch.searchsorted(starts, patches, right=True) - 1
        used = torch.unique(owner if shares is None else owner[shares > 0])
        used = used if len(used) else owner[:1, 0]
        lengths = starts.diff()[used]
        place = torch.searchsorted(used, owner).clamp(max=len(used) - 1)
        patches = patches - starts[owner] + (lengths.cumsum(0) - lengths)[place]
        if shares is not None:
            patches = patches.masked_fill(shares == 0, 0)
        return [self.pictures[number] for number in used.tolist()], patches, shares


def token_numbers(kinds: Sequence[np.ndarray], totals: Sequence[int]) -> list[np.ndarray] | None:
    """Per example the numbers of its rows among all tokens that were encoded, one kind after another.

    `kinds`: per example `[n]`, of each of its rows. `totals`: tokens of each kind. Examples may come several times
    each, one after another, as beams do. None where the numbers do not match.
    """
    counts = np.array([np.bincount(mine, minlength=len(totals)) for mine in kinds])
    times = int(counts.sum()) // max(sum(totals), 1)
    if not times or not np.array_equal(counts[::times].repeat(times, 0)[: len(counts)], counts):
        return None
    once = counts[::times]
    if len(counts) % times or once.sum(0).tolist() != list(totals):
        return None
    starts = once.cumsum(0) - once + np.cumsum([0, *totals[:-1]])
    numbers = []
    for mine, start in zip(kinds, starts.repeat(times, 0), strict=True):
        number = np.empty(len(mine), dtype=np.int64)
        for kind, first in enumerate(start):
            number[mine == kind] = first + np.arange(int((mine == kind).sum()))
        numbers.append(number)
    return numbers


@dataclass(frozen=True, eq=False)
class Vision:
    """One example's images in the tower.

    Attributes:
        depth: layers of the tower. crops: a layer's number to all pictures that the tower saw.
        table: of all images of the batch. tokens: per image of the example, which of the table's.
    """

    depth: int
    crops: Callable[[int], list[Crop]]
    table: PatchTable
    tokens: Sequence[Tensor]

    @cached_property
    def _cut(self) -> list[tuple[list[int], Tensor, Tensor | None]]:
        return [self.table.cut(tokens) for tokens in self.tokens]

    def views(self, layer: int) -> list[VisionView]:
        """The images in one of the wanted layers."""
        crops = self.crops(layer)
        return [
            VisionView([crops[number] for number in pictures], self.table.prefix, patches, shares)
            for pictures, patches, shares in self._cut
        ]
