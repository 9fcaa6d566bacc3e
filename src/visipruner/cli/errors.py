"""From exceptions to one clear sentence on stderr. Every command runs inside `reports_errors`."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import typer

from visipruner.errors import VisiPrunerError

P = ParamSpec("P")
R = TypeVar("R")

# Packages that may be missing, and the extra of ours that brings each.
_EXTRA_OF: dict[str, str | None] = {
    "psutil": "cli",
    "rich": "cli",
    "typer": "cli",
    "accelerate": None,
    "gguf": None,
    "onnx": None,
    "jinja2": "report",
    "scipy": "cli",
    "matplotlib": "report",
}


class CliError(VisiPrunerError):
    """A command that cannot be carried out as written; the message says what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for a close match, else an empty string."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


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


def first_line(error: BaseException) -> str:
    """What an exception says, without the explanations that some libraries append."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _os_error(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"The disk is full{where}; free some space or write elsewhere."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return f"No permission to read or write{where}; choose another place or change its permissions."
    return f"{error.strerror or error}{where}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch reports that as a RuntimeError on the CPU."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


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


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turns any exception of `command` into one sentence on stderr and exit code 1 (130 for Ctrl-C).

    `VISIPRUNER_DEBUG=1` lets exceptions through with their traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("visipruner: interrupted.", file=sys.stderr)
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("VISIPRUNER_DEBUG") not in {None, "", "0"}:
                raise
            print(f"visipruner: {explain(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped
