"""The `--out` folder: found out to be writable before the long work starts."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from visipruner.cli.errors import CliError


def prepare_folder(folder: Path) -> None:
    """Creates the folder and tries to write in it. Raises CliError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        raise CliError(f"Cannot write to --out {folder}: {error.strerror or error}; choose another folder.") from None


def overlay_name(image_number: int, image: Path, question_number: int) -> str:
    """`1-street-q2.png`: numbered, because two images in different folders can share a name."""
    stem = re.sub(r"[^\w.-]+", "_", image.stem)[:60]
    return f"{image_number}-{stem}-q{question_number}.png"
