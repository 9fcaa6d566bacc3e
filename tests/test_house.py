"""The rooms of the library and who may enter which: one direction, no circles."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
ROOM = SOURCE / "visipruner"
MAX_ENGINE_FILE, MAX_ENGINE_FUNCTION = 350, 50

# Room -> what its files may not import, and why.
FORBIDDEN = {
    "contract": (
        ("engine", "pruners", "adapters", "accounting", "chat", "evaluation", "analysis", "training", "cli"),
        "all that a method's author reads stands on its own",
    ),
    "pruners": (("engine", "cli", "evaluation", "analysis", "training"), "methods know the contract, never the engine"),
    "adapters": (("engine", "pruners", "cli", "evaluation", "analysis"), "families are described, not run"),
    "accounting": (("engine", "pruners", "cli", "evaluation"), "counts are of records, whoever wrote them"),
    "engine": (("pruners", "chat", "cli", "evaluation", "analysis", "training"), "the engine runs any method"),
    "evaluation": (("cli",), "the library is used without the command line"),
    "analysis": (("cli",), "the library is used without the command line"),
    "models": (("cli", "evaluation", "analysis"), "models are loaded by everybody"),
    "checking": (("cli", "evaluation", "analysis"), "a check tries the engine alone"),
    "speed": (("cli",), "the library is used without the command line"),
    "training": (("cli",), "the library is used without the command line"),
    "app": (("cli",), "the page is a library too"),
    "integrations": (("cli",), "other tools bring their own command line"),
    "chat": (("cli", "evaluation", "analysis"), "a prompt knows neither its data nor its score"),
}
TERMINAL = ("typer", "rich", "click")


@cache
def modules() -> dict[str, Path]:
    """`{dotted name: file}` of the library."""
    found = {}
    for path in sorted(ROOM.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports_of(name: str) -> frozenset[str]:
    """What a module imports anywhere in it, also lazily and for types only: names as written, made absolute."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules() else base for alias in node.names}
    return frozenset(found)


def room_of(name: str) -> str:
    """The room that a module of the library lies in; its own name at the top."""
    return [*name.split("."), ""][1]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    forbidden, why = FORBIDDEN[room]
    inside = [name for name in modules() if room_of(name) == room]
    assert inside, f"there is no room {room}"
    broken = [
        f"{name} imports {found}"
        for name in inside
        for found in sorted(imports_of(name))
        if found.startswith("visipruner.") and room_of(found) in forbidden
    ]
    assert not broken, f"{room}: {why}; " + ", ".join(broken)


def test_only_the_command_line_draws_on_a_terminal() -> None:
    broken = [
        f"{name} imports {found}"
        for name in modules()
        if room_of(name) not in ("cli", "__main__")
        for found in imports_of(name)
        if found.split(".")[0] in TERMINAL
    ]
    assert not broken, "typer and rich belong to cli; " + ", ".join(broken)


def test_no_imports_go_in_circles() -> None:
    graph = {name: {found for found in imports_of(name) if found in modules()} - {name} for name in modules()}
    left = dict(graph)
    while True:  # whoever imports nothing that is left lies in no circle
        free = {name for name, found in left.items() if not found & left.keys()}
        if not free:
            break
        left = {name: found for name, found in left.items() if name not in free}
    while True:  # nor does whoever nobody left imports
        wanted = {found for imported in left.values() for found in imported}
        if left.keys() <= wanted:
            break
        left = {name: found for name, found in left.items() if name in wanted}
    assert not left, f"import circles among {sorted(left)}"


def test_the_engine_is_read_in_pages() -> None:
    """No file of the engine is longer than seven screens, no function longer than one."""
    long = []
    for path in sorted((ROOM / "engine").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > MAX_ENGINE_FILE:
            long.append(f"{path.name} has {len(text.splitlines())} lines")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
        long += [
            f"{path.name}: {name} has {lines} lines" for name, lines in lengths.items() if lines > MAX_ENGINE_FUNCTION
        ]
    assert not long, ", ".join(long)


def test_the_engines_page_names_every_file() -> None:
    page = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")
    missing = [path.name for path in (ROOM / "engine").glob("*.py") if f"`{path.name}`" not in page]
    missing.remove("__init__.py")
    assert not missing, f"docs/engine.md has no line about {', '.join(missing)}"


def test_numbers_go_to_a_device_without_a_wait() -> None:
    """A plain copy of the host's memory waits for all that a GPU has to do; `contract.layout.uploaded` does not."""
    places = [path for room in ("engine", "contract", "pruners") for path in (ROOM / room).glob("*.py")]
    told = re.compile(r"from_numpy\(.*\)\.to\(|torch\.(as_)?tensor\(.*device=")
    broken = [path.name for path in places if told.search(path.read_text(encoding="utf-8"))]
    assert not broken, f"use uploaded(numbers, device) in {', '.join(broken)}"
