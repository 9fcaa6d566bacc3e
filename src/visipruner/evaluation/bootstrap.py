"""How sure a mean over images is: BCa bootstrap intervals (Efron 1987) that resample whole images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_LEVEL, _RESAMPLES, SEED = 0.95, 4000, 0
# How intervals are made, for whoever repeats them.
INTERVALS = {"level": _LEVEL, "method": "BCa", "resampled": "images", "resamples": _RESAMPLES, "seed": SEED}
_MOST_NUMBERS = 2**24  # in memory at once; resampling tens of thousands of images would need gigabytes

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
                confidence_level=_LEVEL,
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
