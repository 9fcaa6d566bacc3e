"""Commands that installed packages add to `visipruner`, through the entry point group `visipruner.commands`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint

import typer

from visipruner import plugins
from visipruner.cli.errors import reports_errors

GROUP = "visipruner.commands"


def mount(app: typer.Typer) -> None:
    """Adds one command to `app` for each `typer.Typer` that a package offers, under the entry point's name."""
    for name, point in plugins.offered(GROUP).items():
        package = f" of the package {point.dist.name}" if point.dist else ""
        app.command(
            name,
            help=f"Commands{package}.",
            add_help_option=False,
            context_settings={
                "ignore_unknown_options": True,
                "allow_extra_args": True,
                "allow_interspersed_args": False,
            },
        )(_passing_to(point))


def _passing_to(point: EntryPoint) -> Callable[..., None]:
    @reports_errors
    def command(context: typer.Context) -> None:
        # Imported when called: it would slow every other command's help.
        plugins.load(point, typer.Typer, "command")(context.args, prog_name=f"visipruner {point.name}")

    return command
