"""Lists of numbers in words."""

from __future__ import annotations

from collections.abc import Collection


def spans(numbers: Collection[int], joint: str = " ") -> str:
    """Ascending whole numbers, those in a row as one: `(2, 3, 4, 8)` is `2-4 8`."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return joint.join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
