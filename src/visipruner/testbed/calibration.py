"""VisiPruner's settings for the small model: the paper's numbers belong to LLaVA-1.5 and do not transfer."""

from __future__ import annotations

import dataclasses

from visipruner.pruners.base import FILE_NAME, Pruner
from visipruner.pruners.registry import load_pruner
from visipruner.pruners.visipruner import VisiPruner
from visipruner.testbed.testset import DATA_FOLDER

BUDGET = 16


def calibrated() -> VisiPruner:
    """The configuration that ships with the small model, chosen on scenes that are not in its test set."""
    pruner = load_pruner(DATA_FOLDER / FILE_NAME)
    assert isinstance(pruner, VisiPruner)
    return pruner


def configurations() -> dict[str, Pruner]:
    """What `visipruner testbed compare` compares when not told otherwise."""
    ours = calibrated()
    return {
        "VisiPruner, LLaVA-1.5's numbers": VisiPruner.paper(),
        "VisiPruner, calibrated": ours,
        "VisiPruner, calibrated, shallow ffn": dataclasses.replace(ours, shallow_visual="ffn"),
        f"VisiPruner, calibrated, {BUDGET} tokens": dataclasses.replace(ours, keep_tokens=BUDGET),
    }
