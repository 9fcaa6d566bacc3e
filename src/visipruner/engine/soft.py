"""Soft choices, while a model learns them: biases on edges to visual keys, and shares of a layer's update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visipruner.contract.pruner import PromptRun
from visipruner.contract.training_run import TrainingRun
from visipruner.engine.live_rows import LiveRows


def is_biased(layer: int, runs: Sequence[PromptRun]) -> bool:
    """Whether a run may add to the attention logits of this layer."""
    return any(isinstance(run, TrainingRun) and run.biases(layer) for run in runs)


def edge_bias(layer: int, run: PromptRun, rows: Tensor, visual: Tensor) -> Tensor | None:
    """`[n, n]`, what a run adds to the logits among an example's `rows`; `visual`, `[k]` long: places among them."""
    flags = torch.zeros_like(rows, dtype=torch.bool).index_fill(0, visual, True)
    return run.edge_bias(layer, rows, flags) if isinstance(run, TrainingRun) else None


def blended(layer: int, live: LiveRows, runs: Sequence[PromptRun], before: Tensor, after: Tensor) -> Tensor:
    """The output `after` of a layer, of which visual rows take over only the share that their run says."""
    places, shares = [], []
    for example, run in enumerate(runs):
        share = run.output_share(layer) if isinstance(run, TrainingRun) else None
        if share is not None and live.tokens[example].numel():
            places.append(live.places(example)[live.visual_among(example)])
            shares.append(share.to(after).expand(len(places[-1])))
    if not places:
        return after
    where, weights = torch.cat(places), torch.cat(shares)[:, None]
    old, new = before.flatten(0, 1)[where], after.flatten(0, 1)[where]
    return after.flatten(0, 1).index_copy(0, where, torch.lerp(old, new, weights)).view_as(after)
