"""Runs examples/notebooks from top to bottom and writes their outputs back, small and free of this machine.

python -m tools.notebooks [NAME.ipynb ...]      (needs the extra `notebooks`)
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
CELL_SECONDS = 1200  # of a cell, on a busy machine


def executed(path: Path) -> Any:
    """The notebook at `path` with fresh outputs. Raises CellExecutionError where a cell fails."""
    notebook: Any = nbformat.read(path, as_version=4)
    # Somewhere else than here: a notebook must not depend on files beside it.
    where = {"metadata": {"path": "/"}}
    NotebookClient(notebook, timeout=CELL_SECONDS, resources=where, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the minute it ran
        if "outputs" in cell:  # warnings name files of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                _shrink(output.get("data", {}))
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _shrink(data: Any) -> None:
    """Pictures once, with 128 colors: drawings and charts look the same and take a third."""
    data.pop("image/jpeg", None)
    if "image/png" in data:
        picture, out = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))), io.BytesIO()
        picture.convert("RGB").quantize(128).save(out, format="PNG", optimize=True)
        data["image/png"] = base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    for chosen in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(executed(chosen), chosen)
        print(chosen.name)
