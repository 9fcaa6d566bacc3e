"""The `--out` folder: found out to be writable before the long work starts, every file written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visipruner.cli.errors import CliError


def prepare_folder(folder: Path) -> None:
    """Creates the folder and tries to write in it. Raises CliError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise CliError(f"Cannot write to --out {folder}: {error.strerror or error}; choose another folder.") from None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` on a name beside `path` and moves the result there, so that nobody sees half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
    os.close(handle)
    part = Path(name)
    try:
        write(part)
        part.chmod(0o644)
        os.replace(part, path)
    except OSError as error:
        # Pillow's errors do not name the file.
        error.filename = error.filename if error.filename != name else str(path)
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Readable JSON, written atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def overlay_name(image_number: int, image: Path, question_number: int) -> str:
    """`1-street-q2.png`: numbered, because two images in different folders can share a name."""
    stem = re.sub(r"[^\w.-]+", "_", image.stem)[:60]
    return f"{image_number}-{stem}-q{question_number}.png"
