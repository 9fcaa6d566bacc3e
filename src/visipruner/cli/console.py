"""How commands talk: results on stdout, progress and warnings on stderr, tables as wide as the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status as Spinner
from rich.table import Table as RichTable
from rich.text import Text

from visipruner import progress
from visipruner.files import ESCAPED
from visipruner.tables import Table

T = TypeVar("T")
_NAME_SHARE = 3  # a row's name is wrapped beyond this part of the width
_LONGEST_TEXT = 300


def output() -> Console:
    """Stdout, numbers and paths uncoloured."""
    return Console(highlight=False)


def clean(text: str) -> Text:
    """Anything as text: no markup, no control characters that would steer the terminal, no bytes that are no letter."""
    told = text.encode("utf-8", ESCAPED).decode("utf-8")
    return Text("".join(c if c.isprintable() or c == "\n" else " " for c in told))


def shortened(text: str) -> str:
    """A long text's beginning, and how long it is."""
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT].rstrip()} ... ({len(text.split()):,} words)"


def print_json(document: Any) -> None:
    """On stdout, whatever bytes file names have."""
    print(json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8", ESCAPED).decode("utf-8"))


def told(value: Any) -> str:
    """A setting as one would type it after `--set key=`, numbers with no more digits than count."""
    if isinstance(value, Mapping):
        return method_told(value["method"], value["settings"])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def method_told(name: str, settings: Mapping[str, Any]) -> str:
    """A method as one would write it: with the settings that are not as published."""
    from visipruner.contract.settings import declared
    from visipruner.pruners.registry import method_class

    if name == "composed":
        return "+".join(map(told, settings["parts"]))
    published = {key: told(one.get("default")) for key, one in declared(method_class(name)).items()}
    given = ",".join(f"{key}={told(value)}" for key, value in settings.items() if told(value) != published.get(key))
    return f"{name}:{given}" if given else name


def show_settings(console: Console, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Which settings each method ran with, and where they come from."""
    for name, method in methods.items():
        written = method_told(method["method"], method["settings"])
        label = "" if name in (method["method"], written) else f"{name}: "
        console.print(clean(f"{label}{written} ({method['source']})"), style="dim")


class Status(progress.Progress):
    """Progress on stderr; where several processes work, only the main one's is shown."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=not _is_main())
        self._spinner: Spinner | None = None

    def note(self, text: str) -> None:
        self.console.print(clean(text), style="yellow")

    def busy(self, what: str) -> AbstractContextManager[object]:
        self._spinner = self.console.status(escape(what))
        return self._spinner

    def update(self, what: str) -> None:
        if self._spinner is not None:
            self._spinner.update(escape(what))

    def over(self, items: Iterable[T], total: int, what: str) -> Iterator[T]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(what, total=total)
            for done, item in enumerate(items, 1):
                bar.update(task, completed=min(done, total))
                yield item
            bar.update(task, total=total, completed=total)  # fewer may have been needed


def _is_main() -> bool:
    import os

    return os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0"


def show_table(console: Console, table: Table) -> None:
    """A table as wide as the terminal: columns that do not fit follow below, beside the rows' names again."""
    shown: list[int] = []
    names = min(_width(table, 0), console.width // _NAME_SHARE)
    room = console.width - names
    blocks: list[list[int]] = [shown]
    for column in range(1, len(table.columns)):
        width = _width(table, column) + 2
        if blocks[-1] and width > room:
            blocks.append([])
            room = console.width - names
        blocks[-1].append(column)
        room -= width
    for number, block in enumerate(blocks):
        if number:
            console.print()
        console.print(_block(table, block, names))
    for note in table.notes:
        console.print(Text(note, "dim"))


def _width(table: Table, column: int) -> int:
    """Of a column whose heading may be broken between words."""
    heading = table.columns[column].split()
    return max(len(part) for part in (*heading, *(row[column] for row in table.rows)))


def _block(table: Table, columns: Sequence[int], names: int) -> RichTable:
    block = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    block.add_column(table.columns[0], width=names, overflow="fold")
    for column in columns:
        numeric = all(row[column][:1] in "0123456789+-<" for row in table.rows)
        block.add_column(
            table.columns[column], justify="right" if numeric else "left", width=_width(table, column), no_wrap=False
        )
    for row in table.rows:
        block.add_row(*(clean(row[column]) for column in (0, *columns)))
    return block
