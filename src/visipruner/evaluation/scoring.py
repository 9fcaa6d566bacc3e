"""Right or wrong: answers compared by what they say."""

import re
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}
_SIGNS = re.compile(r"(?!(?<!\w)-\.?\d)[^\w\s]")  # all but a minus before a number
_TYPESET_MINUS = "\u2212"
_DIGITS = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"}


def normalize(answer: str) -> str:
    """Lower case, first line, no punctuation, no articles, small numbers as words: " A cat." -> "cat", "3" ->
    "three".

    What may be the answer itself stays: a minus before a number, an article with no word after it ("A", "vitamin A"),
    signs without any word ("+"). So only an empty answer becomes "".
    """
    line = answer.strip().split("\n")[0].lower().replace(_TYPESET_MINUS, "-")
    words = _SIGNS.sub(" ", line).split() or line.split()
    kept = [word for word in words[:-1] if word not in _ARTICLES] + words[-1:]
    if len(kept) == 1:
        kept = [_DIGITS.get(kept[0], kept[0])]
    return " ".join(kept)


def conclusion(answer: str) -> str:
    """What stands after the last colon of the first line, the whole line where there is none: models that show how
    they come to an answer say it last."""
    return answer.strip().split("\n")[0].rpartition(":")[2]


def is_right(given: str, expected: str) -> bool:
    """Normalised exact match of all that is given, or of its conclusion: "left one, right two: two" is "two".

    An empty answer is never right."""
    right = normalize(expected)
    return right != "" and right in (normalize(given), normalize(conclusion(given)))


def right_by_any(given: str, accepted: Sequence[str]) -> float | None:
    """1 where any accepted answer is matched, else 0; None where no answer is known."""
    return float(any(is_right(given, one) for one in accepted)) if accepted else None
