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
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction

CHUNK = 256
BROKEN, CHOSEN = -0.5, -1.0  # distances that place a token behind all others
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
    is_broken = unit.isnan().any(-1)
    unit = unit.masked_fill(is_broken[:, None], 0)
    nearest = []
    for start in range(0, len(unit), CHUNK):
        likeness = unit[start : start + CHUNK] @ unit.T
        own = torch.arange(len(likeness), device=unit.device)
        likeness[own, own + start] = -2.0
        likeness[:, is_broken] = -2.0
        nearest.append(1 - likeness.max(-1).values)
    chosen = [_farthest(torch.cat(nearest).masked_fill(is_broken, BROKEN))]
    distance = (1 - unit @ unit[chosen[0]]).masked_fill(is_broken, BROKEN)
    for _ in range(count - 1):
        distance[chosen[-1]] = CHOSEN
        chosen.append(_farthest(distance))
        distance = torch.minimum(distance, 1 - unit @ unit[chosen[-1]])
    return torch.tensor(sorted(chosen), device=embeddings.device)


def _farthest(distance: Tensor) -> int:
    return int((distance >= distance.max() - SAME).nonzero()[0])
