"""DivPrune: the most diverse subset of visual tokens, chosen greedily.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv 2503.02175. Written
from the paper's description alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import first_of_each, first_smallest, side_by_side, unit_vectors
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction

CHUNK = 256
LAST, CHOSEN = 3.0, 4.0  # likenesses that place a token behind all others
SAME = 1e-6  # copies of one embedding (a newline's) are equally far but for rounding


@dataclass(frozen=True, kw_only=True)
class DivPrune(EntryPruner):
    """Max-min diversity of the projected visual embeddings under the distance 1 - cos, over all images of a prompt.

    Default: 9.8 % of the tokens, the published setting.
    """

    name: ClassVar[str] = "divprune"
    about: ClassVar[About] = About(
        "DivPrune: the most diverse visual embeddings stay",
        paper="Alvar et al., CVPR 2025, arXiv 2503.02175",
        acts="before the language model",
        needs="visual embeddings",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 0.098

    def choose(self, view: EntryView, count: int) -> Tensor:
        return most_diverse([view.embeddings], [count])[0]

    def choose_each(self, views: Sequence[EntryView], counts: Sequence[int]) -> list[Tensor]:
        return most_diverse([view.embeddings for view in views], counts)


def most_diverse(embeddings: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Ascending positions of so many of each of `embeddings` `[n, d]`, chosen greedily for the largest least distance.

    The first is the one whose nearest neighbour is farthest; then always the one farthest from its nearest chosen
    one, the earliest of equals. Embeddings that are not numbers are chosen last. Time O(n d (n + count)), no n x n
    matrix is held. Distances are taken in float32; several examples' products round otherwise than one's, so that of
    tokens equally far but for rounding a batch may choose another.
    """
    unit, lengths = side_by_side([unit_vectors(part, torch.float32) for part in embeddings])
    is_none = lengths.isnan()
    batch = torch.arange(len(unit), device=unit.device)[:, None]
    starts = range(0, unit.shape[1], CHUNK)
    closest = torch.cat([_closest(unit, start, is_none) for start in starts], 1)
    closest = closest.masked_fill(is_none, LAST)  # [b, n]: likeness to the nearest other, then the nearest chosen
    chosen = [first_smallest(closest, SAME)]
    closest = torch.bmm(unit, unit[batch, chosen[0]].mT).squeeze(-1).masked_fill(is_none, LAST)
    for _ in range(max(counts) - 1):
        closest.scatter_(1, chosen[-1], CHOSEN)
        chosen.append(first_smallest(closest, SAME))
        closest = torch.fmax(closest, torch.bmm(unit, unit[batch, chosen[-1]].mT).squeeze(-1))
    return first_of_each(chosen, counts)


def _closest(unit: Tensor, start: int, is_none: Tensor) -> Tensor:
    """`[b, <= CHUNK]`: of the embeddings from `start` on, the likeness to the nearest other one."""
    likeness = unit[:, start : start + CHUNK] @ unit.mT
    own = torch.arange(likeness.shape[1], device=unit.device)
    likeness[:, own, own + start] = -2.0
    return likeness.masked_fill_(is_none[:, None], -2.0).amax(-1)
