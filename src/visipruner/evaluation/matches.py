"""Budgets that were matched already, so that an interrupted evaluation does not match them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner.files import write_json

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner

FILE = "matched.json"


class Matches:
    """What became of each method and budget: a pruner, or why there is none.

    Args:
        folder: holds `matched.json`; None keeps nothing. asked: what must be equal for an earlier answer to count.
        writes: whether this process writes it.
    """

    def __init__(self, folder: Path | None, asked: Mapping[str, Any], writes: bool) -> None:
        self._path = None if folder is None else folder / FILE
        self._writes = writes
        self._asked = json.loads(json.dumps(asked))
        self._found: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            before = json.loads(self._path.read_text(encoding="utf-8"))
            if before["asked"] == self._asked:
                self._found = before["found"]

    def get(self, name: str, cut: float | None) -> Pruner | str | None:
        """The pruner, or the reason why there is none, or None where it was not tried."""
        from visipruner.pruners.registry import make

        found = self._found.get(_key(name, cut))
        if found is None or isinstance(found, str):
            return found
        return make(found["method"], **found["settings"])

    def put(self, name: str, cut: float | None, found: Pruner | str) -> None:
        """Notes one answer, at once."""
        told = found if isinstance(found, str) else {"method": found.name, "settings": found.settings()}
        self._found[_key(name, cut)] = told
        if self._path is not None and self._writes:
            write_json(self._path, {"asked": self._asked, "found": self._found})


def _key(name: str, cut: float | None) -> str:
    return json.dumps([name, cut])
