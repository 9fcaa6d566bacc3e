"""From exceptions to one clear sentence on stderr. Every command runs inside `reports_errors`."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from visipruner.errors import VisiPrunerError, explain, first_line

P = ParamSpec("P")
R = TypeVar("R")


class CliError(VisiPrunerError):
    """A command that cannot be carried out as written; the message says what to do."""


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
