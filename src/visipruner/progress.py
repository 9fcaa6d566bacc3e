"""What a long call tells while it works. `Progress` says nothing; the command line has one that draws bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Pass one of your own to `vp.ask`, `vp.compare` or `vp.bench` to see how far they are."""

    def note(self, text: str) -> None:
        """Something that a reader of the results must know."""

    def busy(self, what: str) -> AbstractContextManager[object]:
        """Entered while `what` is done."""
        return nullcontext()

    def update(self, what: str) -> None:
        """The step that begins now, inside `busy`."""

    def over(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Passes `items` on, which will be `total`."""
        yield from items


SILENT = Progress()
