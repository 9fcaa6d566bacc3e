"""A table before it is shown: as Markdown in files, by the command line as wide as the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Texts in columns.

    Attributes:
        columns: their names. rows: a cell for every column, the row's own name first.
        notes: what must be known to read it, a paragraph each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Callable[[Any], str]], rows: Iterable[Any], notes: Sequence[str] = ()) -> Table:
        """A row for each of `rows`, whose cells `columns` make of it."""
        return cls(list(columns), [[cell(row) for cell in columns.values()] for row in rows], notes)

    def markdown(self, numbers_right: bool = False) -> str:
        """As people paste it; `numbers_right` aligns all but the first column."""
        rule = "|---|" + ("---:|" if numbers_right else "---|") * (len(self.columns) - 1)
        lines = [_line(self.columns), rule, *map(_line, self.rows)]
        return "\n".join([*lines, *(text for note in self.notes for text in ("", note))])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
