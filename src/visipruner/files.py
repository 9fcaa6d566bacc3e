"""Files that are written whole or not at all, lines that are whole, folders that one process writes to, and files told
apart by their content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from visipruner.errors import ConfigError

ESCAPED = "backslashreplace"
"""How JSON is encoded: a file name that is not UTF-8 becomes an escape that JSON knows, and comes back as it was."""


def exists(path: Path) -> bool:
    """Whether something is there; no for a name that no file can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8", errors=ESCAPED))


def prepare_folder(folder: Path) -> None:
    """Creates an output folder and tries to write in it, before the long work starts. Raises ConfigError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"Cannot write to --out {folder}: {why}; choose another folder.") from None


@contextmanager
def held(folder: Path | None) -> Iterator[None]:
    """Inside, no other process gets into `held(folder)`. Raises ConfigError where another one is in.

    The lock ends with the process, and leaves no file behind. Does nothing without a folder, and where the system or
    the file system has no such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        folder = None
    if folder is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"Another process is writing to {folder}; wait until it is done, or choose another --out."
            ) from None
        except OSError:  # a network file system without locks
            pass
        yield
    finally:
        os.close(handle)


def whole_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that end in a newline, without it; what an interruption cut off does not count.

    Only a newline ends a line: JSON may hold the other signs that `str.splitlines` takes for an end as they are. Raises
    ConfigError that names a line which is not UTF-8.
    """
    content = path.read_bytes()
    try:
        return content[: content.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line} is damaged (it is not UTF-8); delete that line.") from None


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal; a process reads it once, and again when its size or time change."""
    state = path.stat()
    return _sha256_of(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
