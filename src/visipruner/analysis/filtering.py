"""Where to filter and how many tokens to keep, and whether a threshold would find that layer by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Array
from visipruner.analysis.evidence import Budget, Evidence, tokens_of
from visipruner.analysis.intervals import Bootstrap, Interval


@dataclass(frozen=True)
class FilterChoice:
    """Where to filter, and how many tokens to keep.

    Attributes:
        layer: the filter layer; budget: tokens that go on, or their share; loss: against dense, of this step alone.
        threshold: the `filter_threshold` that fires at this layer (give or take one) most often; hits: how often. None
            where `layer` is the first that is looked at after the shallow stage: any threshold fires there or later.
        token_threshold: relative length ||c_j|| / ||o|| that keeps `budget` in the median sample.
    """

    layer: int
    budget: Budget
    loss: Interval
    threshold: float | None
    hits: float | None
    token_threshold: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "loss": self.loss.to_dict()}


def filter_choice(evidence: Evidence, shallow_end: int, leave: int, tolerance: float, seed: int) -> FilterChoice | None:
    """The choice with the fewest visual token-layers that is within the tolerance, of the `layers_between`; None where
    there is none.

    Two things count as evidence for that: the whole interval of its own loss is, or the loss is at its layer and at
    every later one.
    """
    if evidence.kept.size == 0:
        return None
    bootstrap = Bootstrap(evidence.images, seed)
    whole = evidence.relative_norm.shape[-1]
    between = layers_between(evidence, shallow_end, leave)
    best: tuple[float, int, int] | None = None
    for b, budget in enumerate(evidence.budgets):
        curve = bootstrap.curve(evidence.kept[:, b])
        for place, layer in enumerate(evidence.layers):
            # Where a later layer loses more, an early mean that does not could be an accident.
            harmless = curve["high"][place] <= tolerance or bool((curve["mean"][place:] <= tolerance).all())
            if harmless and layer in between:
                cost = (layer + 1) * whole + (leave - layer - 1) * tokens_of(budget, whole)
                if best is None or cost < best[0]:
                    best = (cost, b, place)
    if best is None:
        return None
    _, b, place = best
    layer, budget = evidence.layers[place], evidence.budgets[b]
    loss = bootstrap.interval(lambda curve: float(curve[0]), evidence.kept[:, b, place : place + 1])
    threshold, hits = None, None
    if layer > shallow_end + 1:
        threshold, hits = _filter_threshold(evidence.distance, layer, shallow_end)
    return FilterChoice(layer, budget, loss, threshold, hits, _token_threshold(evidence, layer, budget))


def layers_between(evidence: Evidence, shallow_end: int, leave: int) -> list[int]:
    """Layers that were tried, from layer `shallow_end` on and at least two before `leave`."""
    return [layer for layer in evidence.layers if shallow_end <= layer < leave - 1]


def _token_threshold(evidence: Evidence, layer: int, budget: Budget) -> float:
    """The relative length of the last token within the budget, in the median sample."""
    ranked = -np.sort(-evidence.relative_norm[:, layer], axis=-1)  # NaN, last, beyond a sample's own tokens
    counts = (~np.isnan(ranked)).sum(-1).tolist()
    last = [min(tokens_of(budget, count), ranked.shape[-1]) - 1 for count in counts]
    return float(np.nanmedian(ranked[np.arange(len(ranked)), last]))


def _filter_threshold(distance: Array, layer: int, shallow_end: int) -> tuple[float, float]:
    """The cosine threshold that fires at `layer`, give or take one, in the most samples."""
    best = (0.995, -1.0)
    for candidate in np.unique(distance[:, layer].clip(min=1e-6)):
        threshold = candidate * (1 - 1e-6)
        fired = np.array([first_layer(row > threshold, shallow_end + 1) for row in distance])
        hits = float((np.abs(fired - layer) <= 1).mean())
        if hits > best[1]:
            best = (float(1 - threshold), hits)
    return best


def paper_exit(distance: Array, filter_layer: int) -> int:
    """The first layer without vision by the paper's two consecutive votes, over all tokens; L where they fail."""
    quiet = distance < 0.001
    for layer in range(filter_layer + 2, len(distance)):
        if quiet[layer] and quiet[layer - 1]:
            return layer + 1
    return len(distance)


def first_layer(fires: Array, start: int) -> int:
    """The first place from `start` on, or the length."""
    later = np.flatnonzero(fires[start:])
    return int(later[0]) + start if len(later) else len(fires)
