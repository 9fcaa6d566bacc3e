"""FEATHER: attention without positions and a coarse grid, then attention alone deeper down.

"Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model Acceleration", ICCV 2025,
arXiv 2412.13180.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import Scope, best, check_stages, parts_of
from visipruner.contract.choosing import scores_of, union
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, DroppingPruner, PromptRun
from visipruner.contract.settings import Fraction, Layer, Number
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Feather(DroppingPruner):
    """Score: softmax over the visual tokens of q_last K^T **before RoPE**, mean over heads.

    RoPE makes the last row prefer the bottom of the image. Queries and keys are made by the layer before the one that
    tokens leave before (its norm and projections, on what enters it), as in the released code; that is one projection
    more per stage, counted in the trace. Before the first of `layers` the best `keep_ratio` of the tokens stay, and
    with them every `stride`-th token of every `stride`-th line; before the second, the best `keep_ratio` squared of
    those present. Both counts are rounded down, as there.

    Images whose tokens form no grid contribute every `stride`^2-th token instead.

    Attributes:
        layers: tokens leave before these, the first of which is 1 or later. keep_ratio: see above. stride: of the
            grid, in tokens.
        scope: whether the best are those of all images together or of each (see `Budgeted`).
    """

    name: ClassVar[str] = "feather"
    about: ClassVar[About] = About(
        "FEATHER: attention without positions, and a coarse grid",
        paper="Endo et al., ICCV 2025, arXiv 2412.13180",
        acts="before layers 8, 16",
        needs="last row's query, keys, a layer earlier, before RoPE",
    )

    layers: tuple[Layer, ...] = (8, 16)
    keep_ratio: Fraction = 0.3
    stride: Number = 3
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self.layers, self.layers, "layers")
        if 0 in self.layers:
            raise ConfigError("layers must be 1 or later: tokens are scored in the layer before.")

    def start(self) -> PromptRun:
        return _FeatherRun(self)


class _FeatherRun(PromptRun):
    def __init__(self, config: Feather) -> None:
        super().__init__()
        self._config = config
        self._scored = torch.empty(0, dtype=torch.long)
        self._scores = torch.empty(0)

    def observes_entry(self, layer: int) -> bool:
        return layer in self._config.layers or layer + 1 in self._config.layers

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        kept = self._chosen(layer, view) if layer in self._config.layers else None
        left = view if kept is None else view.narrowed(kept)
        if layer + 1 in self._config.layers and left.tokens.numel():
            self._scored, self._scores = left.tokens, left.attention(rotary=False).mean(0)
            if left is not view:
                view.add_work_of(left)
        return kept

    def _chosen(self, layer: int, view: EntryView) -> Tensor | None:
        """Which tokens stay, by the scores of the layer before."""
        stage = self._config.layers.index(layer)
        parts = parts_of(view, self._config.scope)
        counts = [int(len(part) * self._config.keep_ratio ** (stage + 1)) for part in parts]
        kept = best(scores_of(view.tokens, self._scored, self._scores), parts, counts)
        if kept is None or stage > 0:
            return kept
        return union(kept, coarse_grid(view, self._config.stride))


def coarse_grid(view: EntryView, stride: int) -> Tensor:
    """Positions of every `stride`-th token of every `stride`-th line of each image, as far as they are present."""
    kept = [view.tokens[:0]]
    for image in view.images():
        if image.grid is None:
            on_grid = image.tokens % stride**2 == 0
        else:
            on_grid = (image.tokens // image.grid[1] % stride == 0) & (image.tokens % image.grid[1] % stride == 0)
        kept.append(image.positions[on_grid])
    return torch.cat(kept)
