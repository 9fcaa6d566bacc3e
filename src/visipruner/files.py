"""Files that are written whole or not at all, lines that are whole, and files told apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


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


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """JSON, written atomically; `indent=None` for large records that nobody reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def whole_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that end in a newline, without it; what an interruption cut off does not count.

    Only a newline ends a line: JSON may hold the other signs that `str.splitlines` takes for an end as they are.
    """
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal; a process reads it once, and again when its size or time change."""
    state = path.stat()
    return _sha256_of(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
