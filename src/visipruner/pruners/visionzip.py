"""VisionZip: the patches that stand out stay, the others are merged into a few.

"VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.about import About
from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import shares, top
from visipruner.contract.dropping import Positions
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.vision_view import VisionView
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VisionZip(EntryPruner):
    """Per image: dominant tokens are the patches with most class attention (as `FasterVLM`). Of the others, every so
    many is a target; the rest join the target with the most similar key (cosine, mean over heads), and each target
    becomes the mean of its members, itself included: the contextual tokens.

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
        needs="vision tower's class attention and keys",
    )
    merges: ClassVar[bool] = True
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: float = 1 / 3
    contextual_ratio: float = 10 / 64
    vision_layer: int = -2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.contextual_ratio <= 1:
            raise ConfigError(f"contextual_ratio is a fraction and must lie in [0, 1], got {self.contextual_ratio}.")

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose(self, view: EntryView, count: int) -> Merge:
        images = view.images()
        numbers = shares(count, [len(image.tokens) for image in images])
        kept, states = [view.tokens[:0]], [view.embeddings[:0]]
        for image, seen, number in zip(images, view.vision(self.vision_layer), numbers, strict=True):
            embeddings = view.embeddings[image.positions]
            mine, merged = self._zip(seen, image.tokens, embeddings, number)
            kept.append(image.positions[mine])
            states.append(merged)
        return Merge(torch.cat(kept), torch.cat(states))

    def _zip(self, seen: VisionView, tokens: Tensor, embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Ascending positions `[count]` among an image's tokens and what they hold."""
        contextual = round(count * self.contextual_ratio)
        dominant = top(seen.salience[tokens], count - contextual)
        others = torch.ones_like(tokens, dtype=torch.bool)
        others[dominant] = False
        rest = others.nonzero().flatten()
        keys = functional.normalize(seen.keys.float().mean(0)[tokens[rest]], dim=-1)
        targets = torch.arange(contextual, device=rest.device) * max(1, len(rest) // max(contextual, 1))
        means = merged_into(keys, targets, embeddings[rest])
        everyone = torch.cat([dominant, rest[targets]])
        order = everyone.argsort()
        return everyone[order], torch.cat([embeddings[dominant], means])[order]


def merged_into(keys: Tensor, targets: Tensor, embeddings: Tensor) -> Tensor:
    """`[t, d]`: mean of each target and of the tokens most like it. keys: `[n, e]` unit. embeddings: `[n, d]`."""
    if not len(targets):
        return embeddings[:0]
    nearest = (keys @ keys[targets].T).argmax(-1)
    nearest[targets] = torch.arange(len(targets), device=keys.device)
    sums = embeddings.new_zeros(len(targets), embeddings.shape[-1], dtype=torch.float32)
    sums = sums.index_add(0, nearest, embeddings.float())
    return (sums / nearest.bincount(minlength=len(targets))[:, None]).to(embeddings)
