"""`visipruner run`: its options, and what a person sees of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visipruner.cli.options import RULE, AsJson, ModelOptions, command

if TYPE_CHECKING:
    from visipruner.asking import Answered

EXAMPLES = """
visipruner run photo.jpg -q "What animal is this?"

visipruner run a.jpg b.jpg -q "How many people?" -q "What color is the car?" --compare --out out/

visipruner run photo.jpg -q "What is this?" --method none

visipruner run photo.jpg -q "What is this?" --set keep_tokens=32 --json

visipruner run photo.jpg -q "What is this?" --model ~/models/llava-1.5-7b-hf --dtype bfloat16
"""


@dataclass(frozen=True, kw_only=True)
class RunOptions(ModelOptions):
    """Of `visipruner run`."""

    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files. Every image is asked every question.")
    ]
    questions: Annotated[
        list[str], typer.Option("--question", "-q", metavar="TEXT", help="A question; may be given several times.")
    ]
    method: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"A pruning method (see: visipruner list); 'none' prunes nothing, first+second joins two. {RULE}",
            show_default="visipruner",
        ),
    ] = None
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting of the bare --method that is to be another; may be repeated."
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A saved pruner.json (or its folder) instead of --method and --set."),
    ] = None
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", metavar="", help="Also answer without pruning, in turns, and compare answers and times."
        ),
    ] = False
    repeats: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Timed answers of each kind under --compare, after one warm-up; medians count."
        ),
    ] = 3
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save results.json and one picture of the kept tokens per answer."),
    ] = None
    as_json: AsJson = False


@command(RunOptions, EXAMPLES)
def run(options: RunOptions) -> None:
    """Ask a multimodal model about images while its visual tokens are pruned.

    Shows the answer, how many visual tokens were kept and at which layer, and what that saved.
    """
    from visipruner.asking import ask
    from visipruner.cli.answers import show_agreement, show_answer
    from visipruner.cli.console import Status, output, print_json, show_settings
    from visipruner.cli.settings import chosen

    console = output()

    def show(answer: Answered) -> None:
        if not options.as_json:
            show_answer(console, answer)

    method, settings = chosen(options.method, options.setting or [], options.config)
    asked = ask(
        options.model,
        options.images,
        options.questions,
        method,
        settings,
        repeats=options.repeats if options.compare else None,
        max_new_tokens=options.max_new_tokens,
        out=options.out,
        load=options.loading(),
        each=show,
        progress=Status(),
    )
    if options.as_json:
        print_json(asked.document)
        return
    show_agreement(console, asked.answers)
    method_used = asked.document["method"]
    show_settings(console, {method_used["name"]: {**method_used, "method": method_used["name"]}})
    if options.out is not None:
        console.print(f"Saved to {options.out}")
