"""DeFT: a generous choice by the vision tower before the language model, the final one by the text half-way through.

"When Text Matters: Design Principles for Visual Token Pruning in Vision-Language Models", 2026, arXiv 2609.34861.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.contract.budget import Budgeted, best, first_sizes, parts_of
from visipruner.contract.entry_view import EntryView
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About
from visipruner.contract.settings import Fraction, Layer
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeFT(Budgeted):
    """Of N tokens K, the budget, stay in the end. Before the language model the best K + ceil(reserve (N - K)) by class
    attention stay, or by attention received where the vision tower has no class token; before `layer` the best K of
    these by the attention of the text rows in the layer before it, mean over heads.

    The released code keeps no cache: it reads the prompt again for every word, and chooses anew; ours chooses once.

    Attributes:
        reserve: the paper's alpha. layer: half of the layers. vision_layer: of the tower, its last.
    """

    name: ClassVar[str] = "deft"
    about: ClassVar[About] = About(
        "DeFT: by the vision tower with a reserve, half-way by the text rows",
        paper="2026, arXiv 2609.34861",
        acts="before the language model and layer 16",
        needs="vision tower's class attention, text rows' attention",
    )

    keep_ratio: Fraction = 0.2
    reserve: Fraction = 0.2
    layer: Layer = 16
    vision_layer: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ConfigError("deft: layer must be at least 1: the text rows choose in the layer before it.")

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def observes_entry(self, layer: int) -> bool:
        return layer == 0

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        sizes = first_sizes(view, self.scope)
        counts = [self.budget(size) + math.ceil(self.reserve * (size - self.budget(size))) for size in sizes]
        return best(view.salience(self.vision_layer), parts_of(view, self.scope), counts)

    def observes(self, layer: int) -> bool:
        return layer == self.layer - 1

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        counts = [self.budget(size) for size in first_sizes(view, self.scope)]
        return best(view.attention_from(view.text_rows), parts_of(view, self.scope), counts)
