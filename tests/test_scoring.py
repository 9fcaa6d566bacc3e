"""Scoring: normalised exact match, intervals, majority."""

import pytest

from visipruner.evaluation.scoring import is_right, normalize
from visipruner_testbed.evaluate import majority_right, wilson_interval


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" A cat.", "cat"),
        ("Top left\nand more", "top left"),
        ("3", "three"),
        ("42", "42"),
        ("The Rocket!", "rocket"),
        ("A", "a"),
        ("(A).", "a"),
        ("Vitamin A", "vitamin a"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("at most -.5!", "at most - 5"),
        ("3-5, - 2", "3 5 2"),
        (" < ", "<"),
        (" \n", ""),
    ],
)
def test_normalize(given, expected):
    assert normalize(given) == expected


def test_right_and_wrong():
    assert is_right("a dog and a cat", "a dog and a cat")
    assert not is_right("a cat and a dog", "a dog and a cat")
    assert not is_right("", "cat")
    assert is_right("top left one, middle none: One.", "1")
    assert is_right("3:45", "3:45")
    assert not is_right("one: two", "one")
    assert not is_right("two\nso: one", "one")
    assert is_right("a.", "A")
    assert is_right("Temperature: -5", "-5")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "A"), ("?", "A"), ("The", "A"), ("B:", "A"), ("", ""), ("-", "+"), ("<", ">"), ("-5", "5"), ("5", "-5")],
)
def test_articles_and_signs_can_be_the_answer(given, expected):
    assert not is_right(given, expected)


def test_wilson_interval_matches_scipy():
    stats = pytest.importorskip("scipy.stats")
    for right, total in ((0, 10), (7, 10), (450, 600)):
        expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_majority():
    assert majority_right(["Yes", "no", "yes."]) == 2
    assert majority_right([]) == 0
