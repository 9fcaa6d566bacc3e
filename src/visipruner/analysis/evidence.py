"""What stages are read off: losses of the sweeps, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visipruner.analysis.arrays import Array

# How many tokens go on: a number of them (int), or a share of the image's (float), where images differ in their tokens.
Budget = int | float
Metric = Literal["accuracy", "agreement", "kl"]
TOLERANCES: dict[Metric, float] = {"accuracy": 0.02, "agreement": 0.05, "kl": 0.05}


def tokens_of(budget: Budget, num_visual: int) -> int:
    """How many of `num_visual` tokens a budget is; of a share at least one."""
    return budget if isinstance(budget, int) else max(1, round(budget * num_visual))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What stages are read off, S samples, L layers; losses are against the dense model and may be NaN.

    Attributes:
        below: `[S, L + 1]`, loss without text -> visual edges in layers 0 .. k-1.
        discard: `[S, L + 1]`, loss with visual rows gone from layer k on.
        window: `[S, W]`, loss without these edges in layers k .. k + window_size - 1.
        swapped_window: `[S, W]`, loss with another picture's tokens seen in these layers instead.
        swapped: `[S]`, loss with another picture's tokens seen in all layers.
        window_size: layers in a window.
        kept: `[S, budgets, layers]`, loss with only `budgets` most influential tokens left after `layers`.
        budgets, layers: labels of `kept`; all budgets are of one kind.
        distance: `[S, L]`, largest 1 - cos(o, o - c_j) of any visual token (the paper's test).
        relative_norm: `[S, L, n_v]`, ||c_j|| / ||o||.
        images: per sample, which image; types: per sample, the kind of question.
        metric: what a loss is: right answers lost, dense answers changed (both shares), or KL in nats.
    """

    below: Array
    discard: Array
    window: Array
    swapped_window: Array
    swapped: Array
    window_size: int
    kept: Array
    budgets: Sequence[Budget]
    layers: Sequence[int]
    distance: Array
    relative_norm: Array
    images: Sequence[Any]
    types: Sequence[str]
    metric: Metric = "kl"
