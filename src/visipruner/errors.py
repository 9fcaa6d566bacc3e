"""What the library raises for its users, and `explain`, which makes one sentence of anything that was raised."""

from __future__ import annotations

import errno
import re

# Packages that may be missing, and the extra of ours that brings each.
_EXTRA_OF: dict[str, str | None] = {
    "psutil": "cli",
    "rich": "cli",
    "typer": "cli",
    "accelerate": None,
    "gguf": None,
    "gradio": "app",
    "onnx": None,
    "jinja2": "report",
    "scipy": "cli",
    "matplotlib": "report",
}


class VisiPrunerError(Exception):
    """Base of every error that a user can cause or repair; its message is one sentence that says what to do."""


class UnsupportedModelError(VisiPrunerError):
    """The model, its attention or its cache is of a kind that cannot be pruned."""


class LayoutError(VisiPrunerError):
    """It cannot be told which rows of a prompt are visual, or the mask given does not fit."""


class ConfigError(VisiPrunerError, ValueError):
    """A pruner's settings make no sense, alone or for this model."""


class LoadError(VisiPrunerError):
    """A model, its processor or its device is not here, or cannot be loaded."""


def first_line(error: BaseException) -> str:
    """What an exception says, without the explanations that some libraries append."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch reports that as a RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def _missing_module(error: ImportError) -> str:
    """transformers raises a plain ImportError that names the package somewhere in its text."""
    named = (error.name or "").partition(".")[0]
    package = next((known for known in _EXTRA_OF if known == named or re.search(rf"\b{known}\b", str(error))), named)
    if package in _EXTRA_OF:
        extra = _EXTRA_OF[package]
        what = package if extra is None else f"'visipruner[{extra}]'"
        return f"This needs the package {package!r}; install it with: pip install {what}"
    if named and isinstance(error, ModuleNotFoundError):
        return f"The Python package {named!r} is missing; install it with: pip install {named}"
    return f"A package is missing or broken: {first_line(error)}"


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}; free some space or write elsewhere."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"No permission to read or write{where}; choose another place or change its permissions."
    return f"{error.strerror or error}{where}"


def explain(error: BaseException) -> str:
    """One sentence about what went wrong and, where we know, what to do."""
    if isinstance(error, VisiPrunerError):
        return str(error)
    if isinstance(error, ImportError):
        return _missing_module(error)
    if is_out_of_memory(error):
        return "Not enough memory for this model; try --dtype bfloat16 or a smaller model."
    if isinstance(error, OSError):
        return _os_error(error)
    return (
        f"Unexpected {type(error).__name__}: {first_line(error)}. "
        "Run again with VISIPRUNER_DEBUG=1 for the details to report."
    )
