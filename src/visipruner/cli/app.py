"""The command line. Nothing heavy is imported here or by the commands' files, so that help is instant."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer

from visipruner import plugins
from visipruner.cli import analyze, bench, check, evaluate, listing, page, plan, run
from visipruner.cli.errors import reports_errors

GROUP = "visipruner.commands"

app = typer.Typer(
    name="visipruner",
    help="See, prune and speed up the visual tokens of multimodal language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"visipruner {version('visipruner')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def mount(app: typer.Typer) -> None:
    """Adds one command to `app` for each `typer.Typer` that a package offers as an entry point of `GROUP`."""
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


_COMMANDS: dict[str, Any] = {
    "run": run.run,
    "app": page.app,
    "analyze": analyze.analyze,
    "eval": evaluate.evaluate,
    "bench": bench.bench,
    "check": check.check,
    "plan": plan.plan,
    "list": listing.list_,
}
for _name, _function in _COMMANDS.items():
    app.command(_name, epilog=_function.epilog)(_function)
mount(app)
