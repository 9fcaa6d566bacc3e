"""Sign-flip tests against cases by hand, against all flips one by one, and against worlds without a difference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from visipruner.evaluation import certainty
from visipruner.evaluation.certainty import LEVEL, holm, sign_flip_p


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.0] * 40, 1.0),
        ([-1.0] * 3 + [0.0] * 37, 2 / 8),
        ([-1.0] * 5 + [1.0], 2 * (1 + 6) / 64),
        ([-4.0], 1.0),  # one image, however many questions
        ([-1.0] * 6, 2 / 64),
        ([3.0, -1.0, -1.0, -1.0], 1.0),
        ([-2.0, -1.0, -1.0], 2 / 8),
        ([0.1 + 0.2, 0.3], 2 / 4),  # equal but for rounding
        ([1 / 30] * 6, 2 / 64),  # no sum of theirs is exact
    ],
)
def test_cases_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(np.array(differences)) == pytest.approx(p)


def test_counting_by_size_is_counting_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    differences = generator.integers(-4, 3, 12) / 3
    totals = [abs(float(np.dot(signs, differences))) for signs in product((-1, 1), repeat=12)]
    exact = np.mean(np.array(totals) >= abs(differences.sum()) - 1e-9)
    assert 0 < exact < 1
    assert sign_flip_p(differences) == pytest.approx(exact)
    monkeypatch.setattr(certainty, "_MOST_TOTALS", 1)  # drawn instead
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(differences) == sign_flip_p(differences)
    assert sign_flip_p(-np.ones(60)) == 1 / 100_001


def test_many_images_of_many_sizes_take_no_time_of_their_square() -> None:
    generator = np.random.default_rng(0)
    assert 0 < sign_flip_p(generator.normal(0.05, 1, 5000).round(2)) < LEVEL


@pytest.mark.parametrize(("images", "share"), [(40, 0.05), (40, 0.025), (100, 0.05)])
def test_the_level_holds_where_few_answers_change(images: int, share: float) -> None:
    """Without a difference at most one in twenty is called significant, give or take the draw of 600 worlds."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(600):
        drawn = generator.random(images)
        found.append(sign_flip_p(np.where(drawn < share, -1.0, np.where(drawn < 2 * share, 1.0, 0.0))) <= LEVEL)
    assert np.mean(found) <= LEVEL
    assert images < 100 or any(found)


def test_a_real_difference_is_seen() -> None:
    generator = np.random.default_rng(2)
    found = [sign_flip_p(-(generator.random(100) < 0.15).astype(float)) <= LEVEL for _ in range(50)]
    assert np.mean(found) > 0.9


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
