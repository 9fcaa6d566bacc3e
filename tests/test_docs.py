"""README and docs: short enough, their links lead somewhere, their commands have such options, their names exist."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from research.cli import app as research
from visipruner.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 900
# Files that commands of the pages want to exist.
NAMED = (
    "photo.jpg",
    "a.jpg",
    "b.jpg",
    "pairs.jsonl",
    "analysis/pruner.json",
    "path/to/config.json",
    "FOLDER/config.json",
)
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[list[str]]:
    """The commands of this project in the page's blocks, as lists of words."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[2:] if line[:1] == ["python"] and line[1] == "-m" else line for line in words if line]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_is_read_in_three_minutes() -> None:
    assert len(prose(ROOT / "README.md").split()) <= MOST_WORDS


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if page.name != "README.md" and f"({page.name})" not in index] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not path.startswith("http") and (not target.exists() or (anchor and anchor not in anchors(target))):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed as the command line does it, not carried out."""
    monkeypatch.chdir(tmp_path)
    for name in NAMED:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for program, *words in commands(page):
        if program not in ("visipruner", "research"):
            continue
        command: Any = typer.main.get_command(app if program == "visipruner" else research)
        while hasattr(command, "get_command"):
            found = command.get_command(command.make_context(program, list(words)), words[0])
            assert found is not None, f"there is no command {words[0]}"
            command, words = found, words[1:]
        command.make_context(program, list(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_imports_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("visipruner"):
                if node.module != "visipruner.integrations.vlmevalkit":  # it needs VLMEvalKit
                    module = importlib.import_module(str(node.module))
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vp":
                assert hasattr(importlib.import_module("visipruner"), node.attr), node.attr
