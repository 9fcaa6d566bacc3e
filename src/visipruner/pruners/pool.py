"""Average pooling: downsampling, the baseline that is hard to beat.

"Are We Using the Right Benchmark: An Evaluation Framework for Visual Token Compression Methods", arXiv 2510.07143,
finds it ahead of most methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView, Image, Merge
from visipruner.contract.pruner import About, DroppingPruner
from visipruner.contract.settings import Layer, Number
from visipruner.models.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Pool(DroppingPruner):
    """Every `stride` x `stride` window of an image's tokens becomes one token, their mean, at the place of the middle
    one; windows at the edges may be smaller. Tokens without a grid are pooled `stride`^2 at a time.

    Attributes:
        stride: side of the window, in tokens. layer: the first layer with the pooled tokens.
    """

    name: ClassVar[str] = "pool"
    about: ClassVar[About] = About(
        "windows of tokens averaged into one, a control",
        paper="as in arXiv 2510.07143",
        acts="before a layer, by default the first",
        needs="visual embeddings",
    )
    merges: ClassVar[bool] = True

    stride: Number = 2
    layer: Layer = 0
    match_tolerance: ClassVar[float] = 0.03  # it comes in whole layers and windows

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """The smallest windows that can leave so few, at the layer where they leave `share` on average over layers."""
        depth = ModelShape.from_config(model.config).num_layers
        stride = max(self.stride, math.ceil(max(share, 1e-3) ** -0.5))
        left = stride**-2
        return replace(self, stride=stride, layer=min(depth - 1, round(depth * (share - left) / (1 - left))))

    def observes_entry(self, layer: int) -> bool:
        return layer == self.layer and self.stride > 1

    def select_entry(self, layer: int, view: EntryView) -> Merge:
        kept, states = [], []
        for image in view.images():
            windows = window_of(image, self.stride)
            for window in sorted(set(windows.tolist())):
                members = (windows == window).nonzero().flatten()
                kept.append(image.positions[members[middle_of(image, members)]])
                states.append(view.embeddings[image.positions[members]].float().mean(0))
        order = torch.stack(kept).argsort()
        return Merge(torch.stack(kept)[order], torch.stack(states)[order].to(view.embeddings))


def window_of(image: Image, stride: int) -> Tensor:
    """`[k]` long: the window that each of an image's tokens falls into."""
    if image.grid is None:
        return image.tokens // stride**2
    width = image.grid[1]
    per_line = -(-width // stride)
    return image.tokens // width // stride * per_line + image.tokens % width // stride


def middle_of(image: Image, members: Tensor) -> int:
    """Which of a window's members is nearest to its middle; of several the last."""
    width = image.size if image.grid is None else image.grid[1]
    places = torch.stack([image.tokens[members] // width, image.tokens[members] % width], -1).double()
    distance = (places - (places.amin(0) + places.amax(0)) / 2).square().sum(-1)
    return int((distance == distance.min()).nonzero()[-1])
