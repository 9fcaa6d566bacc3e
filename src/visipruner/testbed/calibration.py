"""VisiPruner's settings for the small model: the paper's numbers belong to LLaVA-1.5 and do not transfer."""

from __future__ import annotations

from visipruner.pruners.base import FILE_NAME
from visipruner.pruners.registry import load_pruner
from visipruner.pruners.visipruner import VisiPruner
from visipruner.testbed.testset import DATA_FOLDER


def calibrated() -> VisiPruner:
    """The configuration that ships with the small model: what `visipruner analyze` proposes for it."""
    pruner = load_pruner(DATA_FOLDER / FILE_NAME)
    assert isinstance(pruner, VisiPruner)
    return pruner
