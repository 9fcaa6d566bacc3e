"""How often a 95 % interval holds what it is an interval of: far less often than it says where images are few."""

from __future__ import annotations

import numpy as np
import pytest

from visipruner.analysis.result import ENOUGH, Array, Bootstrap

DRAWS = 4000


def _coverage(images: int) -> float:
    bootstrap = Bootstrap(range(images))
    values = np.random.default_rng(0).normal(size=(images, DRAWS))  # each column an experiment whose true mean is 0
    curve = bootstrap.curve(values)
    return float(((curve["low"] <= 0) & (curve["high"] >= 0)).mean())


@pytest.mark.parametrize(
    ("images", "least", "most"),
    [(1, 0.0, 0.0), (2, 0.48, 0.52), (5, 0.81, 0.85), (ENOUGH, 0.88, 0.92), (32, 0.92, 0.96)],
)
def test_coverage(images: int, least: float, most: float) -> None:
    assert least <= _coverage(images) <= most


def test_an_interval_holds_its_value() -> None:
    """No layer loses anything on average, but in every resample some layer does by chance."""
    values = np.random.default_rng(0).normal(size=(ENOUGH, 40))
    values -= values.mean(0)
    bootstrap = Bootstrap(range(ENOUGH))
    for statistic, value in ((_first_loss, 40.0), (lambda curve: -_first_loss(curve), -40.0)):
        found = bootstrap.interval(statistic, values)
        assert found.low <= found.value == value <= found.high
        assert found.low < found.high


def _first_loss(curve: Array) -> float:
    return float(np.append(np.flatnonzero(curve > 0.01), len(curve))[0])


def test_one_image_has_no_interval() -> None:
    bootstrap = Bootstrap(["one"] * 4)
    values = np.arange(4.0)[:, None]
    curve = bootstrap.curve(values)
    assert curve["mean"] == 1.5
    assert np.isnan([curve["low"], curve["high"]]).all()
    found = bootstrap.interval(lambda mean: float(mean[0]), values)
    assert found.to_dict() == {"value": 1.5, "low": None, "high": None}
    assert found.ends == (1.5, 1.5)
