"""Which feature of the docs' table is tried by which tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., None])
TRIED: dict[str, list[str]] = {}


def tries(*features: str) -> Callable[[Test], Test]:
    """Marks a test as one that tries these features with every family that has them."""

    def mark(test: Test) -> Test:
        for feature in features:
            TRIED.setdefault(feature, []).append(test.__name__)
        return test

    return mark
