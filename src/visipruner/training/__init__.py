"""Models that need no pruning: visual rows exist only where they are used, in training and in inference.

    from visipruner.training import align

    model = align(model, inject_layer=8, exit_layer=24)

Importing this room registers aligned models with transformers' Auto classes.
"""

from visipruner.training.entry import fit_entry
from visipruner.training.gates import Asked, VisualGates
from visipruner.training.guide import StagedVision
from visipruner.training.model import (
    AlignedLlavaConfig,
    AlignedLlavaForConditionalGeneration,
    AnnealGates,
    align,
    gates_of,
    register,
)
from visipruner.training.settings import Alignment

register()

__all__ = [
    "AlignedLlavaConfig",
    "AlignedLlavaForConditionalGeneration",
    "Alignment",
    "AnnealGates",
    "Asked",
    "StagedVision",
    "VisualGates",
    "align",
    "fit_entry",
    "gates_of",
]
