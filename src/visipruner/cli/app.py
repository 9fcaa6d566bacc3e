"""The command line: every command is a file of its own. Nothing heavy is imported here, so that help is instant."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from visipruner.cli import analyze, bench, check, evaluate, listing, page, plan, run
from visipruner.cli.mounted import mount

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


def _add(name: str, function: Any) -> None:
    app.command(name, epilog=function.epilog)(function)


_add("run", run.run)
_add("app", page.app)
_add("analyze", analyze.analyze)
_add("eval", evaluate.evaluate)
_add("bench", bench.bench)
_add("check", check.check)
_add("plan", plan.plan)
_add("list", listing.list_)
mount(app)
