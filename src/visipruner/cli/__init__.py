"""The command line: every command is a file of its own, `app` puts them together."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `visipruner` command; it needs the `cli` extra, the library does not."""
    try:
        from visipruner.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "click"}:
            raise
        sys.exit(f"visipruner: the command line needs {error.name}; install it with: pip install 'visipruner[cli]'")
    app()
