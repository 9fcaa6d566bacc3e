"""Small pieces of sentences: numbers, lists of them, and the word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def runs(numbers: Collection[int]) -> list[range]:
    """Ascending whole numbers, those in a row as one range."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return [range(start, end + 1) for start, end in zip(starts, ends, strict=True)]


def spans(numbers: Collection[int], joint: str = " ") -> str:
    """Ascending whole numbers in words: `(2, 3, 4, 8)` is `2-4 8`."""
    return joint.join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs(numbers))


def figures(value: float) -> str:
    """Three figures that count, written out."""
    return f"{value:.3g}" if value < 999.5 else f"{float(f'{value:.3g}'):,.0f}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for a close match, else an empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
