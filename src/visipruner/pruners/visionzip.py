"""VisionZip: the patches that stand out stay, the others are merged into a few.

"VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import others, top
from visipruner.contract.entry_view import Image, Merge
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction
from visipruner.contract.vision_view import VisionView


@dataclass(frozen=True, kw_only=True)
class VisionZip(PerImagePruner):
    """Per image: dominant tokens are those with most class attention, or most received (as `FasterVLM`). Of the
    others, every so many is a target; the rest join the target with the most similar key (cosine, mean over heads), and
    each target becomes the mean of its members, itself included: the contextual tokens.

    The paper's averaging is done here on the projected embeddings. The released code works before the projector,
    **adds** the members' mean to the target, and lets the class token through as one more visual token, which the
    published counts include; none of the three can be had from a stock prompt. It also appends the contextual tokens
    after the dominant ones, where ours stay in the image's order: on small random models logits differ by 0.1 to 0.3.

    Attributes:
        contextual_ratio: fraction of the budget that is contextual; the published 54 + 10, 108 + 20 and 162 + 30.
        vision_layer: of the tower.
    """

    name: ClassVar[str] = "visionzip"
    about: ClassVar[About] = About(
        "VisionZip: salient patches, and a few that the others are merged into",
        paper="Yang et al., CVPR 2025, arXiv 2412.04467",
        acts="before the language model",
        needs="vision tower's class attention, or attention received, and keys",
    )
    merges: ClassVar[bool] = True
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 1 / 3
    contextual_ratio: Fraction = 10 / 64
    vision_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Merge:
        contextual = round(count * self.contextual_ratio)
        dominant = top(seen[0].salience[image.tokens], count - contextual)
        rest = others(dominant, len(image.tokens))
        keys = functional.normalize(seen[0].keys.float().mean(0)[image.tokens[rest]], dim=-1)
        targets = torch.arange(contextual, device=rest.device) * max(1, len(rest) // max(contextual, 1))
        means = merged_into(keys, targets, embeddings[rest])
        return Merge(torch.cat([dominant, rest[targets]]), torch.cat([embeddings[dominant], means]))


def merged_into(keys: Tensor, targets: Tensor, embeddings: Tensor) -> Tensor:
    """`[t, d]`: mean of each target and of the tokens most like it. keys: `[n, e]` unit. embeddings: `[n, d]`."""
    if not len(targets):
        return embeddings[:0]
    nearest = (keys @ keys[targets].T).argmax(-1)
    nearest[targets] = torch.arange(len(targets), device=keys.device)
    sums = embeddings.new_zeros(len(targets), embeddings.shape[-1], dtype=torch.float32)
    sums = sums.index_add(0, nearest, embeddings.float())
    return (sums / nearest.bincount(minlength=len(targets))[:, None]).to(embeddings)
