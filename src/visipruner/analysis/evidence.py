"""What stages are read off, and how sure a mean over samples is: bootstrap over images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visipruner.analysis.arrays import Array, Told

RESAMPLES = 2000
_ENDS = (0.025, 0.975)
ENOUGH = 10  # images; of fewer a percentile bootstrap covers clearly less than it says


@dataclass(frozen=True)
class Interval(Told):
    """A number with its 95 % interval; `low` and `high` are NaN (JSON: null) where there is none, as of one image."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """`low` and `high`, or the value twice where they are not known."""
        return float(np.fmin(self.low, self.value)), float(np.fmax(self.high, self.value))


class Bootstrap:
    """Resamples whole images with all their questions (percentile bootstrap, 95 %). One image has no intervals.

    Args:
        clusters: per sample, which image it belongs to. seed: of the resampling.
    """

    def __init__(self, clusters: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES) -> None:
        names = list(dict.fromkeys(clusters))
        self.images = len(names)
        member = np.array([names.index(cluster) for cluster in clusters])
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        self.weights = draws[:, member].astype(float)  # [resamples, samples]

    def means(self, values: Array) -> Array:
        """`[resamples, ...]`: weighted means of `values` `[samples, ...]`; NaN values are left out."""
        known = ~np.isnan(values)
        total = np.tensordot(self.weights, np.where(known, values, 0.0), axes=1)
        count = np.tensordot(self.weights, known.astype(float), axes=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(total / np.where(count > 0, count, np.nan))

    def curve(self, values: Array) -> dict[str, Array]:
        """Mean, low and high of `values` `[samples, ...]`, each `[...]`; NaN where nothing is known."""
        means = self.means(values)
        with np.errstate(invalid="ignore"):
            known = ~np.isnan(values)
            mean = np.where(known, values, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
            low, high = np.quantile(means if self.images > 1 else np.full_like(means, np.nan), _ENDS, axis=0)
        return {"mean": mean, "low": low, "high": high}

    def mean(self, values: Array) -> Interval:
        """The mean of `values` `[samples]`."""
        return self.interval(lambda curve: float(curve[0]), values[:, None])

    def interval(self, statistic: Callable[[Array], float], values: Array) -> Interval:
        """A statistic of the mean curve: its value on all samples, and where 95 % of the resamples put it.

        The interval always holds the value. A boundary, as the first of many layers with a loss, need not lie where the
        resamples put it: in one of so many layers each of them loses by chance what all samples together do not.
        """
        point = statistic(self.curve(values)["mean"])
        if self.images == 1:
            return Interval(float(point), np.nan, np.nan)
        drawn = np.array([statistic(curve) for curve in self.means(values)])
        low, high = np.quantile(drawn, _ENDS, method="nearest")
        return Interval(float(point), float(min(low, point)), float(max(high, point)))


def few_images(count: int, done: str) -> list[str]:
    """A note where there are too few images for their intervals; `done` is what was done with them, "analysed"."""
    if count >= ENOUGH:
        return []
    if count == 1:
        return [f"Only one image was {done}, which gives no intervals; take {ENOUGH} or more."]
    return [f"Only {count} images were {done}: the 95 % intervals of so few are too narrow; take {ENOUGH} or more."]


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
