"""A coarser grid: the other control, downsampling by dropping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.about import About
from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import shares, spread, spread_over_grid
from visipruner.contract.entry_view import EntryView


@dataclass(frozen=True, kw_only=True)
class UniformPruner(EntryPruner):
    """Keeps tokens evenly spread over each image, in both directions where its tokens form a grid."""

    name: ClassVar[str] = "uniform"
    about: ClassVar[About] = About(
        "tokens evenly spread over the grid, a control", acts="before a layer, by default the first"
    )

    def choose(self, view: EntryView, count: int) -> Tensor:
        kept = []
        images = view.images()
        for image, number in zip(images, shares(count, [len(image.positions) for image in images]), strict=True):
            if image.grid is None or not image.is_whole:
                places = spread(number, len(image.positions), view.tokens.device)
            else:
                places = spread_over_grid(number, image.grid, view.tokens.device)
            kept.append(image.positions[places])
        return torch.cat(kept).sort().values
