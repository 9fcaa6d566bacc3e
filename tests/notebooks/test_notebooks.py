"""Every notebook runs from top to bottom: `make notebooks` (needs nbclient and the small model's weights)."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS, BYTES = 180, 1_500_000
# Places that only one machine has.
MACHINE = re.compile(r"/(?:home|root|work|Users|tmp|usr|opt|var)/|site-packages|[A-Z]:\\\\")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _outputs(notebook: Any) -> list[list[str]]:
    """For every cell of code, what kinds of output it has."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[kind for output in cell["outputs"] for kind in sorted(output.get("data", ["text"]))] for cell in cells]


def test_there_are_five_and_they_are_small() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1-", "2-", "3-", "4-", "5-"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < BYTES
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if f"({path.name})" not in page] == []


@each_notebook
def test_outputs_are_saved_and_tell_nothing_of_the_machine(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any(kinds for kinds in _outputs(notebook))
    told = [output for cell in code for output in cell["outputs"]]
    assert [output for output in told if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    texts = [json.dumps({**output, "data": {**output.get("data", {}), "image/png": ""}}) for output in told]
    assert [found[0] for text in texts if (found := MACHINE.search(text))] == []


@pytest.mark.notebook
@each_notebook
def test_runs_from_top_to_bottom(path: Path) -> None:
    """Without an error, within three minutes of work, and with outputs of the kinds that are saved."""
    from tools.notebooks import executed

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = executed(path)  # a busy machine is no failure; work is what counts
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    print(f"{path.name}: {worked:.0f} s of work")
    assert worked < 2 * SECONDS  # on two cores
    assert _outputs(again) == _outputs(json.loads(path.read_text(encoding="utf-8")))
