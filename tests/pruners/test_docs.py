"""The table of methods is the registry's, and the page on adding one can be followed to the letter."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.method_table import as_markdown, inserted
from visipruner.contract.pruner import Pruner
from visipruner.pruners.registry import available, method_class

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_registrys_table() -> None:
    """Else: `python tools/method_table.py docs/methods.md`."""
    page = (ROOT / "docs" / "methods.md").read_text()
    assert inserted(page) == page
    for name in available():
        assert f"| `{name}` |" in as_markdown()


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="write between"):
        inserted("# Nothing here\n")


@pytest.mark.parametrize("name", sorted(available()))
def test_every_method_says_where_it_comes_from(name: str) -> None:
    about = method_class(name).about
    assert about.summary
    # Controls, and methods of one's own, have no paper.
    assert not about.paper or "arXiv" in about.paper
    assert method_class(name).__doc__


def test_the_page_on_budgets_has_every_methods_tolerance() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text()
    [(usual, others)] = re.findall(r"the nearest is taken: within (\d+) % of what was asked, (.*?); else", page, re.S)
    told = {
        name: int(share) / 100
        for share, names in re.findall(r"(\d+) % for\s((?:`\w+`(?:, | and )?)+)", others)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert int(usual) / 100 == Pruner.match_tolerance
    tolerances = {name: method_class(name).match_tolerance for name in available()}
    assert told == {name: value for name, value in tolerances.items() if value != Pruner.match_tolerance}


def test_the_example_of_the_page_appears_everywhere(tmp_path: Path) -> None:
    """The file of docs/methods.md in a copy of the library: listed, runnable, in the matrix; no other edit."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.S)
    [code] = [block for block in blocks if "class KeyNorm" in block]
    for part in ("src", "tests"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (tmp_path / "src/visipruner/pruners/keynorm.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}{os.pathsep}{tmp_path}", "COLUMNS": "200"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "keynorm" in run("-c", "import visipruner.cli; visipruner.cli.main()", "list")
    batches = ("-m", "pytest", "tests/engine/test_batches.py", "-k", "keynorm and sdpa and llama and left")
    assert " passed" in run(*batches)
    assert "KeyNorm(positions=None, recall=0, keep_tokens=None, keep_ratio=0.5, scope='prompt', layer=4)" in run(
        "-c", "from visipruner.pruners.registry import make_from_spec as make; print(make('divprune+keynorm:layer=4'))"
    )
