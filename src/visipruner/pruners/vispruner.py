"""VisPruner: half of the budget to patches that stand out, half to what is not a duplicate.

"Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025,
arXiv 2412.01818.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import best_first
from visipruner.contract.entry_view import Image
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction
from visipruner.contract.vision_view import VisionView

STEP = 8  # tokens dropped at a time, as in the released code


@dataclass(frozen=True, kw_only=True)
class VisPruner(PerImagePruner):
    """Per image: the patches with most class attention (as `FasterVLM`) take `important_ratio` of the budget. The
    others, in the order of their attention, are thinned out: split into every other one, the 8 of the first half that
    are most alike (cosine) to any of the second are dropped, again and again until the rest of the budget is met.

    As in the released code, likeness is that of the vision tower's own features in `vision_layer`, and what is left of
    a first half goes on in the order of its likeness, before the second.

    Attributes:
        important_ratio: fraction of the budget that goes by attention. vision_layer: of the tower.
    """

    name: ClassVar[str] = "vispruner"
    about: ClassVar[About] = About(
        "VisPruner: salient patches, and the others without duplicates",
        paper="Zhang et al., ICCV 2025, arXiv 2412.01818",
        acts="before the language model",
        needs="vision tower's class attention, or attention received, and features",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 0.25
    important_ratio: Fraction = 0.5
    vision_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor:
        order = best_first(seen[0].salience[image.tokens])
        important, rest = order.tensor_split([int(count * self.important_ratio)])
        features = seen[0].features[image.tokens[rest]]
        return torch.cat([important, rest[thinned(features, count - len(important))]])


def thinned(features: Tensor, count: int) -> Tensor:
    """Positions of `count` of `features` `[n, d]`, near duplicates dropped first; see `VisPruner`. Those that are not
    numbers are dropped before any other."""
    unit = functional.normalize(features.float(), dim=-1)
    is_broken = unit.isnan().any(-1)
    left = (~is_broken).nonzero().flatten()
    if not count:
        return left[:0]
    if count > len(left):
        return torch.cat([left, is_broken.nonzero().flatten()])[:count]
    while len(left) > count:
        first, second = left[::2], left[1::2]
        drop = min(STEP, len(left) - count, len(first))
        likeness = (unit[first] @ unit[second].T).max(-1).values
        order = likeness.argsort(descending=True, stable=True)
        left = torch.cat([first[order[drop:]], second])
    return left
