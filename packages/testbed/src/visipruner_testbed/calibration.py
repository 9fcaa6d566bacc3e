"""VisiPruner's settings for the small model: the paper's numbers belong to LLaVA-1.5 and do not transfer."""

from __future__ import annotations

from dataclasses import replace

from visipruner.contract.pruner import FILE_NAME
from visipruner.pruners.registry import load_pruner
from visipruner.pruners.visipruner import VisiPruner
from visipruner_testbed.build import IMAGE_SIZE
from visipruner_testbed.testset import DATA_FOLDER


def calibrated(image_size: int = IMAGE_SIZE) -> VisiPruner:
    """The configuration that ships with the small model: what `visipruner analyze` proposes for it.

    For smaller pictures the budget is the same share of the visual tokens.
    """
    pruner = load_pruner(DATA_FOLDER / FILE_NAME)
    assert isinstance(pruner, VisiPruner)
    if pruner.keep_tokens is None:
        return pruner
    return replace(pruner, keep_tokens=round(pruner.keep_tokens * (image_size / IMAGE_SIZE) ** 2))
