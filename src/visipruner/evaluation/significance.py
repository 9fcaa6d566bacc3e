"""Whether a paired difference is more than chance: a sign-flip test over images, and Holm's correction over a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
_DRAWS, _SEED = 100_000, 0
_MOST_TOTALS = 2**20  # enumerated below, drawn above
_DIGITS = 9  # differences are shares; what is equal but for rounding must tie
# How p is made, for whoever repeats it.
TEST = {
    "level": LEVEL,
    "method": "sign flips, two-sided",
    "flipped": "images",
    "correction": "Holm",
    "draws": _DRAWS,
    "seed": _SEED,
}

Numbers = npt.NDArray[np.float64]


def sign_flip_p(differences: Numbers, seed: int = _SEED) -> float:
    """Two-sided p of the paired differences `[images]`, each the sum over one image's questions.

    If a method and the dense model do not differ, each image's difference could as well have had the other sign. p is
    the share of all sign patterns whose total is at least as far from 0 as the one seen (Fisher 1935). With one
    question an image this is the exact McNemar test. Flips of equally large differences are interchangeable, so only
    how many of them are negative counts; nearly always that can be enumerated, else it is drawn, `seed` given.
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
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted
