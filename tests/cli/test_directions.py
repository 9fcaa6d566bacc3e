"""The command line is the outermost room: nothing else needs its packages or imports it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "visipruner"
_OURS = ("cli", "testbed")  # the testbed adds a command of its own
FILES = [
    path for path in sorted(SOURCE.rglob("*.py")) if path.relative_to(SOURCE).parts[0] not in (*_OURS, "__main__.py")
]


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_library_file_knows_the_command_line(path: Path) -> None:
    names = _imported(path)
    assert not {name for name in names if name.split(".")[0] in ("typer", "rich", "click")}
    assert not {name for name in names if name.startswith("visipruner.cli")}
