"""FasterVLM: patches that the vision tower's class token attends to stay.

"[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024,
arXiv 2412.01818 (v1; later versions are VisPruner).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.about import About
from visipruner.contract.budget import EntryPruner
from visipruner.contract.choosing import shares, top
from visipruner.contract.dropping import Positions
from visipruner.contract.entry_view import EntryView


@dataclass(frozen=True, kw_only=True)
class FasterVLM(EntryPruner):
    """Score of a patch: attention of the class token in one layer of the vision tower, mean over heads; the best of
    each image stay, images sharing a prompt's budget by size.

    A tower without a class token (SigLIP) is scored by the attention a patch receives, mean over rows and heads.

    Attributes:
        vision_layer: of the tower; -2 is the layer whose output LLaVA-1.5 takes.
    """

    name: ClassVar[str] = "fastervlm"
    about: ClassVar[About] = About(
        "FasterVLM: patches the vision tower's class token attends to stay",
        paper="Zhang et al., 2024, arXiv 2412.01818v1",
        acts="before the language model",
        needs="vision tower's class attention",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: float = 0.25
    vision_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose(self, view: EntryView, count: int) -> Tensor:
        images = view.images()
        numbers = shares(count, [len(image.tokens) for image in images])
        kept = [view.tokens[:0]]
        for image, seen, number in zip(images, view.vision(self.vision_layer), numbers, strict=True):
            kept.append(image.positions[top(seen.salience[image.tokens], number)])
        return torch.cat(kept)
