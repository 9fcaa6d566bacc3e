"""What a page is made of: sections of paragraphs, figures and tables. How they look is the template's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        title: what it shows, in a few words. svg: the drawing, safe to embed. caption: what is measured, its unit, how
            many samples, what the band is, and what the figure does not show.
        narrow: the same drawing for a phone, where it needs one of its own. small: may stand beside several others.
    """

    title: str
    svg: str
    caption: str = ""
    narrow: str = ""
    small: bool = False


@dataclass(frozen=True)
class Table:
    """A table of plain text; the first column names the rows, `numeric` columns are set to the right."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Section:
    """One headed part of the page."""

    key: str
    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""
