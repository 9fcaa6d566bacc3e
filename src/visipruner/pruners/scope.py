"""SCOPE: tokens that cover what no chosen one covers yet, weighed by how much they stand out.

"SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", NeurIPS 2025, arXiv 2510.24214.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import first_smallest
from visipruner.contract.entry_view import Image
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction, Within
from visipruner.contract.vision_view import VisionView

SAME = 1e-6  # two tokens that cover each other alone gain alike but for rounding


@dataclass(frozen=True, kw_only=True)
class SCOPE(PerImagePruner):
    """Per image, greedily: the next token j has the largest gain_j * a_j^alpha. gain_j is the sum over all tokens i of
    max(0, cos(i, j) - the largest cosine of i to a chosen token, at least 0); a_j is the class token's attention.

    Cosines are those of the vision tower's own features, as in the released code. Its default, LLaVA-1.5's 192 of 576.

    Attributes:
        alpha: how much the attention counts; 0 leaves it out. vision_layer: of the tower, for both.
    """

    name: ClassVar[str] = "scope"
    about: ClassVar[About] = About(
        "SCOPE: what covers most that is not yet covered, by class attention",
        paper="Deng et al., NeurIPS 2025, arXiv 2510.24214",
        acts="before the language model",
        needs="vision tower's class attention and features",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 1 / 3
    alpha: Annotated[float, Within(0)] = 1.0
    vision_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor:
        weights = seen[0].salience[image.tokens] ** self.alpha
        return most_covering(seen[0].features[image.tokens], weights, count)


def most_covering(features: Tensor, weights: Tensor, count: int) -> Tensor:
    """Positions of `count` of `features` `[n, d]` by `SCOPE`'s rule, the earliest of equals; `weights` `[n]`. What is
    not a number covers nothing and is chosen last. O(n^2 count), n x n numbers are held."""
    unit = functional.normalize(features.float(), dim=-1)
    is_broken = unit.isnan().any(-1) | weights.isnan()
    unit, weights = unit.masked_fill(is_broken[:, None], 0), weights.float().masked_fill(is_broken, 0)
    likeness, covered = unit @ unit.T, unit.new_zeros(len(unit), 1)
    late = is_broken.float()  # how far behind in line
    chosen = [torch.empty(0, dtype=torch.long, device=features.device)]
    for _ in range(count):
        gain = (likeness - covered).clamp(min=0).sum(0) * weights
        best = first_smallest(torch.where(late > 0, late, -gain / gain.amax().clamp(min=1e-30)), SAME)
        chosen.append(best)
        late = late.index_fill(0, best, 2.0)
        covered = torch.maximum(covered, likeness.index_select(1, best))
    return torch.cat(chosen)
