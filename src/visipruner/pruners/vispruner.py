"""VisPruner: half of the budget to patches that stand out, half to what is not a duplicate.

"Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025,
arXiv 2412.01818.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.about import About
from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import best_first, shares
from visipruner.contract.dropping import Positions
from visipruner.contract.entry_view import EntryView
from visipruner.errors import ConfigError

STEP = 8  # tokens dropped at a time, as in the released code


@dataclass(frozen=True, kw_only=True)
class VisPruner(EntryPruner):
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
        needs="vision tower's class attention and features",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: float = 0.25
    important_ratio: float = 0.5
    vision_layer: int = -2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.important_ratio <= 1:
            raise ConfigError(f"important_ratio is a fraction and must lie in [0, 1], got {self.important_ratio}.")

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose(self, view: EntryView, count: int) -> Tensor:
        images = view.images()
        numbers = shares(count, [len(image.tokens) for image in images])
        kept = [view.tokens[:0]]
        for image, seen, number in zip(images, view.vision(self.vision_layer), numbers, strict=True):
            order = best_first(seen.salience[image.tokens])
            important, rest = order.tensor_split([int(number * self.important_ratio)])
            diverse = rest[thinned(seen.features[image.tokens[rest]], number - len(important))]
            kept.append(image.positions[torch.cat([important, diverse]).sort().values])
        return torch.cat(kept)


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
