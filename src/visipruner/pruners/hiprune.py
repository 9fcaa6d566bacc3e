"""HiPrune: what a middle layer of the vision tower finds, its surroundings, and what a deep layer gathers.

"HiPrune: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models", ACL 2026, arXiv 2508.00553.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import top, union
from visipruner.contract.entry_view import Image
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction
from visipruner.contract.vision_view import VisionView


@dataclass(frozen=True, kw_only=True)
class HiPrune(PerImagePruner):
    """Per image with budget T: round(alpha T / 5) anchors receive most attention in the object layer; buffers are
    their neighbours left, right, above and below; registers, the rest of T, receive most in the deep layer. Attention
    received is the mean over rows and heads.

    As in the released code, neighbours are the tokens one and one line before and after in reading order: those of a
    token at the end of a line lie on the next line, and places beyond the image become its first or last token.
    Without a grid they are the tokens before and after.

    Attributes:
        alpha: fraction of the budget for anchors and buffers.
        object_layer: of the vision tower, or None for 9 of 24, the published one, at the same depth.
        deep_layer: of the vision tower.
    """

    name: ClassVar[str] = "hiprune"
    about: ClassVar[About] = About(
        "HiPrune: anchors of a middle vision layer, their neighbours, a deep layer's best",
        paper="Liu et al., ACL 2026, arXiv 2508.00553",
        acts="before the language model",
        needs="attention received in two layers of the vision tower",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 1 / 3
    alpha: Fraction = 0.1
    object_layer: int | None = None
    deep_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        middle = max(1, round(depth * 9 / 24)) - 1 if self.object_layer is None else self.object_layer
        return (middle, self.deep_layer)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor:
        middle, deep = seen
        anchors = image.tokens[top(middle.received.mean(0)[image.tokens], round(self.alpha * count / 5))]
        first = union(anchors, neighbours(anchors, image))
        places = torch.isin(image.tokens, first).nonzero().flatten()[:count]
        scores = deep.received.mean(0)[image.tokens].index_fill(0, places, float("-inf"))
        return union(places, top(scores, count - len(places)))


def neighbours(anchors: Tensor, image: Image) -> Tensor:
    """Tokens next to the anchors in reading order, and those one line above and below; within the image."""
    steps = (1,) if image.grid is None else (1, image.grid[1])
    found = [anchors + step * side for step in steps for side in (-1, 1)]
    return torch.cat(found).clamp(0, image.size - 1)
