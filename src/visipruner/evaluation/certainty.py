"""How sure a mean or a paired difference over images is.

BCa bootstrap intervals (Efron 1987) that resample whole images, a sign-flip test over images, and Holm's correction
over a table.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

SEED = 0
_CONFIDENCE, _RESAMPLES = 0.95, 4000
# How intervals are made, for whoever repeats them.
INTERVALS = {"level": _CONFIDENCE, "method": "BCa", "resampled": "images", "resamples": _RESAMPLES, "seed": SEED}
_MOST_NUMBERS = 2**24  # in memory at once; resampling tens of thousands of images would need gigabytes
LEVEL = 0.05  # of significance
_DRAWS = 100_000
_MOST_TOTALS = 2**20  # enumerated below, drawn above
_DIGITS = 9  # differences are shares; what is equal but for rounding must tie
# How p is made, for whoever repeats it.
TEST = {
    "level": LEVEL,
    "method": "sign flips, two-sided",
    "flipped": "images",
    "correction": "Holm",
    "draws": _DRAWS,
    "seed": SEED,
}

Numbers = npt.NDArray[np.float64]


def interval(values: Numbers, clusters: Sequence[str], seed: int = SEED) -> dict[str, Any]:
    """Mean of `values` with its 95 % BCa interval; whole clusters are resampled.

    low and high are None for one cluster, or where all have the same mean: resampling then tells nothing.
    """
    from scipy.stats import bootstrap

    sums, counts = per_image(values, clusters)
    value = float(values.mean())
    if np.ptp(sums / counts) == 0:
        return {"value": value, "low": None, "high": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate BCa is answered below
        found = None
        for method in ("BCa", "percentile"):
            found = bootstrap(
                (sums, counts),
                lambda total, number, axis=-1: total.sum(axis) / number.sum(axis),
                paired=True,
                vectorized=True,
                n_resamples=_RESAMPLES,
                confidence_level=_CONFIDENCE,
                batch=max(1, _MOST_NUMBERS // len(sums)),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
            if np.isfinite([found.low, found.high]).all():
                break
    assert found is not None
    return {"value": value, "low": float(found.low), "high": float(found.high)}


def per_image(values: Numbers, images: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Sums of `values` and how many there are, both `[images]`."""
    names = {image: number for number, image in enumerate(dict.fromkeys(images))}
    member = np.array([names[image] for image in images])
    return np.bincount(member, values).astype(float), np.bincount(member).astype(float)


def sign_flip_p(differences: Numbers, seed: int = SEED) -> float:
    """Two-sided p of the paired differences `[images]`, each the sum over one image's questions.

    Without a difference between the methods each could as well have had the other sign: p is the share of sign patterns
    whose total is as far from 0 as the one seen (Fisher 1935), with one question an image the exact McNemar test. Flips
    of equal differences are interchangeable, so patterns can nearly always be enumerated; else they are drawn.
    """
    from scipy.stats import binom

    rounded = differences.round(_DIGITS)
    seen = abs(float(rounded.sum()))  # of the same numbers as the totals, or rounding puts it beyond all of them
    sizes, counts = np.unique(np.abs(rounded[rounded != 0]), return_counts=True)
    if prod(int(count) + 1 for count in counts) > _MOST_TOTALS:
        generator = np.random.default_rng(seed)
        drawn = sum(
            size * (2.0 * generator.binomial(count, 0.5, _DRAWS) - count)
            for size, count in zip(sizes, counts, strict=True)
        )
        return float((1 + _reach(drawn, seen).sum()) / (1 + _DRAWS))  # the one seen counts: p is never 0
    totals, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        negative = np.arange(count + 1)
        totals = np.add.outer(totals, size * (count - 2.0 * negative)).ravel()
        chances = np.multiply.outer(chances, binom.pmf(negative, count, 0.5)).ravel()
    return float(f"{chances[_reach(totals, seen)].sum():.12g}")  # the chances are not exact to the last digits


def _reach(totals: Any, seen: float) -> npt.NDArray[np.bool_]:
    far: npt.NDArray[np.bool_] = np.abs(totals) >= seen - 10.0**-_DIGITS * max(1.0, seen)
    return far


def holm(values: Sequence[float]) -> list[float]:
    """p values of one family, adjusted (Holm 1979): one at most alpha is significant with a chance of at most alpha
    that any of the family is called so wrongly."""
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    steps = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]
