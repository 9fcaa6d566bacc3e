"""FasterVLM: patches that the vision tower's class token attends to stay.

"[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024,
arXiv 2412.01818 (v1; later versions are VisPruner).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import top
from visipruner.contract.entry_view import Image
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction
from visipruner.contract.vision_view import VisionView


@dataclass(frozen=True, kw_only=True)
class FasterVLM(PerImagePruner):
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
        needs="vision tower's class attention, or attention received",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 0.25
    vision_layer: int = -2

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Tensor:
        return top(seen[0].salience[image.tokens], count)
