"""Layers that visual tokens may pass by unchanged, read off the part `freeze_blocks`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from visipruner.pruners.visipruner import VisiPruner


def idle_layers(
    analysis: Mapping[str, Any], layers: range, end: Literal["mean", "low", "high"] = "mean"
) -> tuple[int, ...]:
    """Of `layers` the blocks that lose least, for as long as their losses add up to no more than the analysis allows.

    The analysis measures KL in each block by itself. Several together lose more than the sum, so what this names is a
    proposal to try.

    Args:
        analysis: what `analysis.json` holds. layers: where blocks must lie as a whole.
        end: of a block's interval, what is taken for its loss.

    Returns layers, ascending; none where there is no such measurement, or stages are not read off KL.
    """
    blocks, stages = analysis.get("freeze_blocks"), analysis["stages"]
    if blocks is None or stages["metric"] != "kl":
        return ()
    size = int(analysis["settings"]["plan"]["block"])
    losses = blocks["kl"][end]
    if None in losses:  # one image has no interval
        losses = blocks["kl"]["mean"]
    chosen: set[int] = set()
    spent = 0.0
    for loss, start in sorted(zip(losses, blocks["layer"], strict=True)):
        block = range(start, start + size)
        if start < layers.start or block.stop > layers.stop or not chosen.isdisjoint(block):
            continue
        spent += max(0.0, loss)
        if spent > stages["tolerance"]:
            break
        chosen.update(block)
    return tuple(sorted(chosen))


def full_layers(pruner: VisiPruner) -> range:
    """Layers that have every visual token: from the end of the shallow stage to the filter layer, if that is fixed."""
    first = pruner.shallow_end if "shallow" in pruner.stages else 0
    return range(first, first if pruner.filter_layer is None else pruner.filter_layer + 1)
