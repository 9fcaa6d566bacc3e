"""A coarser grid: the other control, downsampling by dropping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import spread, spread_over_grid
from visipruner.contract.entry_view import Image
from visipruner.contract.pruner import About
from visipruner.contract.vision_view import VisionView


@dataclass(frozen=True, kw_only=True)
class UniformPruner(PerImagePruner):
    """Keeps tokens evenly spread over each image, in both directions where its tokens form a grid."""

    name: ClassVar[str] = "uniform"
    about: ClassVar[About] = About(
        "tokens evenly spread over the grid, a control", acts="before a layer, by default the first"
    )

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor:
        if image.grid is None or not image.is_whole:
            return spread(count, len(image.positions), image.positions.device)
        return spread_over_grid(count, image.grid, image.positions.device)
