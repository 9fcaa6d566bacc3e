"""Methods read the contract, and neither knows the engine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src/visipruner"
MAY_IMPORT = {
    "contract": {"contract", "errors", "files"},
    # `fitting` runs a model for the searches of some methods' settings, and `chat` is only named in a type.
    "pruners": {"contract", "pruners", "models", "errors", "files", "fitting", "chat"},
}
FILES = [(room, path) for room in MAY_IMPORT for path in sorted((ROOT / room).glob("*.py"))]


def _rooms(code: str) -> set[str]:
    """The parts of this library that a module imports, anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            names += [
                f"{node.module}.{alias.name}" if node.module == "visipruner" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name and name.startswith("visipruner.")}


@pytest.mark.parametrize(("room", "path"), FILES, ids=lambda part: getattr(part, "stem", part))
def test_no_method_knows_the_engine(room: str, path: Path) -> None:
    assert _rooms(path.read_text()) <= MAY_IMPORT[room]


def test_every_import_is_seen() -> None:
    assert _rooms("def f():\n    from visipruner.engine.attach import attach\nimport visipruner.cli\n") == {
        "engine",
        "cli",
    }
    assert _rooms("from visipruner import analysis") == {"analysis"}
