"""DivPrune: the most diverse subset of visual tokens, chosen greedily.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv 2503.02175. Written
from the paper's description alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import first_smallest
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction

CHUNK = 256
BROKEN, CHOSEN = 3.0, 4.0  # likenesses that place a token behind all others
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
        return most_diverse(view.embeddings, count)


def most_diverse(embeddings: Tensor, count: int) -> Tensor:
    """Ascending positions of `count` of `embeddings` `[n, d]`, chosen greedily for the largest least distance.

    The first is the one whose nearest neighbour is farthest; then always the one farthest from its nearest chosen
    one, the earliest of equals. Embeddings that are not numbers are chosen last. Time O(n d (n + count)), no n x n
    matrix is held. Distances are taken in float32.
    """
    if not count:
        return torch.empty(0, dtype=torch.long, device=embeddings.device)
    unit = functional.normalize(embeddings.float(), dim=-1)
    is_broken = unit.isnan().any(-1, keepdim=True)
    unit = unit.masked_fill(is_broken, 0)
    closest = torch.cat([_closest(unit, start, is_broken) for start in range(0, len(unit), CHUNK)])
    closest = closest.masked_fill(is_broken, BROKEN)  # [n, 1]: likeness to the nearest other, then the nearest chosen
    chosen = [first_smallest(closest, SAME)]
    closest = (unit @ unit[chosen[0]].T).masked_fill(is_broken, BROKEN)
    for _ in range(count - 1):
        closest.index_fill_(0, chosen[-1], CHOSEN)
        chosen.append(first_smallest(closest, SAME))
        closest = torch.maximum(closest, unit @ unit.index_select(0, chosen[-1]).T)
    return torch.cat(chosen).sort().values


def _closest(unit: Tensor, start: int, is_broken: Tensor) -> Tensor:
    """`[<= CHUNK, 1]`: of the embeddings from `start` on, the likeness to the nearest other one."""
    likeness = unit[start : start + CHUNK] @ unit.T
    own = torch.arange(len(likeness), device=unit.device)
    likeness[own, own + start] = -2.0
    return likeness.masked_fill(is_broken.T, -2.0).amax(-1, keepdim=True)
