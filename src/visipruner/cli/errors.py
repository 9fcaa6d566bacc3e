"""From exceptions to one clear sentence on stderr. Every command runs inside `reports_errors`."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from visipruner.errors import VisiPrunerError, first_line, is_out_of_memory

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


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    """One sentence; users gain nothing from the place in the library that raised it."""
    print(f"visipruner: warning: {first_line(Warning(str(message)))}.", file=sys.stderr)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turns any exception of `command` into one sentence on stderr and exit code 1 (130 for Ctrl-C).

    `VISIPRUNER_DEBUG=1` lets exceptions through with their traceback.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            print("visipruner: interrupted.", file=sys.stderr)
            raise typer.Exit(130) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if os.environ.get("VISIPRUNER_DEBUG") not in {None, "", "0"}:
                raise
            told = explain(error).removeprefix("visipruner: ")  # of the method, whose name is ours
            print(f"visipruner: {told}", file=sys.stderr)
            raise typer.Exit(1) from None

    return wrapped
