"""`visipruner bench`: its options, and tables of seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visipruner.cli.errors import CliError
from visipruner.cli.options import RULE, AllowDownload, AsJson, Attention, DType, Implementation, command

if TYPE_CHECKING:
    from visipruner.speed.checks import CheckResult

EXAMPLES = """
visipruner bench --shape tiny

visipruner bench --shape llava-1.5-7b --schedule filter=14,keep=10,exit=20 --out bench/

visipruner bench --shape llava-onevision-0.5b --visual 576 --visual 2304 --method visipruner --method fastv

visipruner bench --model ~/models/llava-1.5-7b-hf --image photo.jpg --method visipruner --method fastv

visipruner bench --check all --out bench/
"""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Of `visipruner bench`; None leaves a number to what is measured."""

    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A shape that ships (tiny, llava-1.5-7b, llava-1.5-13b, llava-onevision-0.5b, qwen2-vl-2b, "
            "qwen2-vl-7b, qwen2.5-vl-7b, internvl3-8b) or a config.json. Weights are random.",
            show_default="llava-1.5-7b; a check's own",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A real checkpoint in place of a shape, asked about a picture: as for run.",
            show_default="a random shape",
        ),
    ] = None
    image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --model: the picture.", show_default="one that ships")
    ] = None
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --model: the question.", show_default="Describe the image."),
    ] = None
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure a promise of docs/performance.md and say whether it is kept: prefill, overhead, scaling, "
            "batch, questions, host, or all; and gpu, where there is one. Repeatable.",
        ),
    ] = None
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help=f"A method; + joins two. Repeatable. {RULE}",
            show_default="visipruner without shallow stage, with it, and with shallow_visual=ffn",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Where visipruner filters, how many tokens it keeps, and where they leave. Its evidence is computed "
            "all the same.",
            show_default="filter=14,keep=10,exit=20 at 32 layers",
        ),
    ] = None
    visual: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Visual tokens of the prompt. Repeatable.", show_default="576"),
    ] = None
    before: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Text tokens before them.", show_default="35")
    ] = None
    after: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Text tokens after them.", show_default="13")
    ] = None
    batch: Annotated[int | None, typer.Option(min=1, metavar="N", help="Prompts at a time.", show_default="1")] = None
    new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens to generate.", show_default="8")
    ] = None
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Every method runs once a round.", show_default="3; a check's own"),
    ] = None
    layers: Annotated[
        int | None, typer.Option(min=4, metavar="N", help="Only so many decoder layers.", show_default="all")
    ] = None
    tie_layers: Annotated[
        bool | None,
        typer.Option(
            "--tie-layers/--no-tie-layers",
            metavar="",
            help="Let all layers share one layer's weights, which costs the same time and little memory.",
            show_default="where they would not fit",
        ),
    ] = None
    dtype: Annotated[
        DType,
        typer.Option(metavar="NAME", help="auto is bfloat16, or float32 where the processor is slow at bfloat16."),
    ] = DType.AUTO
    attn: Implementation = Attention.SDPA
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu"
    allow_download: AllowDownload = False
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up", metavar="", help="Run everything once before, uncounted; else only the text."
        ),
    ] = True
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Save results as JSON, tables and charts.")] = None
    as_json: AsJson = False

    def given(self, *names: str, **renamed: str) -> dict[str, Any]:
        """The options that were given, as the library's parameters: of the same name, or `parameter="option"`."""
        options = {**{name: name for name in names}, **renamed}
        values = {parameter: getattr(self, option) for parameter, option in options.items()}
        return {parameter: value for parameter, value in values.items() if value is not None}


@command(BenchOptions, EXAMPLES)
def bench(options: BenchOptions) -> None:
    """Measure speed and memory of pruning at real shapes, with random weights, against dense and what FLOPs promise."""
    from visipruner.cli.console import print_json

    if options.model is None and options.given("image", "question"):
        raise CliError("--image and --question are for a real checkpoint; give --model NAME too, or leave them out.")
    if options.model is not None:
        document = _of_model(options, options.model)
    elif options.check:
        document = _of_checks(options, options.check)
    else:
        document = _of_shape(options)
    if options.as_json:
        print_json(document)


def _of_model(options: BenchOptions, model: str) -> dict[str, Any]:
    from visipruner.cli.console import Status
    from visipruner.speed import bench_model
    from visipruner.speed.bench import check_device

    if options.given("shape", "check", "visual", "batch", "before", "after", "layers", "tie_layers"):
        raise CliError(
            "--model brings its own size and prompt; leave out --shape, --check, --visual, --before, --after, --batch, "
            "--layers and --tie-layers."
        )
    check_device(options.device)
    document = bench_model(
        model,
        **options.given("image", "question", "schedule", "new_tokens", "rounds", "warm_up", "out", methods="method"),
        load=options.given("dtype", "attn", "device", "allow_download"),
        progress=Status(),
    )
    if not options.as_json:
        _show_model(document["model"])
        _show(document["points"][0])
    return document


def _of_checks(options: BenchOptions, names: list[str]) -> dict[str, Any]:
    from visipruner.cli.console import Status
    from visipruner.speed import Effort, bench_checks

    if options.given("method", "batch", "schedule", "before", "after"):
        raise CliError(
            "--check brings its own methods, schedule and prompts; leave out --method, --schedule, --before, --after "
            "and --batch."
        )
    effort = Effort(**options.given("shape", "layers", "rounds", "visual", "dtype", "device", "attn", tie="tie_layers"))
    show = None if options.as_json else _show_check
    return bench_checks(names, effort, out=options.out, each=show, progress=Status())


def _of_shape(options: BenchOptions) -> dict[str, Any]:
    from visipruner.cli.console import Status
    from visipruner.speed import bench_shape

    size = options.given("shape", "visual", "before", "after", "batch", "layers", tie="tie_layers")
    how = options.given("schedule", "new_tokens", "rounds", "warm_up", "dtype", "attn", "device", methods="method")
    return bench_shape(
        **size,
        **how,
        out=options.out,
        each=None if options.as_json else _show_last,
        progress=Status(),
    )


def _show_last(document: dict[str, Any]) -> None:
    if len(document["points"]) == 1:
        _show_model(document["model"])
    _show(document["points"][-1])


def _show_check(result: CheckResult) -> None:
    from visipruner.cli.console import output

    _show_model(result.model, f"{result.name}: ")
    for point in result.points:
        _show(point)
    for target in result.targets:
        output().print(str(target), markup=False)


def _show_model(model: dict[str, Any], before: str = "") -> None:
    from visipruner.cli.console import output

    notes = "".join(f"; {note}" for note in model["notes"])
    output().print(f"[bold]{before}{model['name']}[/bold], {model['dtype']}{notes}")


def _show(point: dict[str, Any]) -> None:
    from visipruner.cli.console import output, show_table
    from visipruner.speed.table import as_table

    console = output()
    if point["visual"]:
        batch = f", {point['batch']} at a time" if point.get("batch", 1) > 1 else ""
        attention = f", {point['attention']}" if "attention" in point else ""
        text = f"{point['text_before']} + {point['text_after']} of text"
        console.print(f"{point['visual']} visual tokens, {text}{batch}{attention}")
    if point.get("tower_seconds") is not None:
        console.print(f"vision tower alone: {point['tower_seconds']['median']:.2f} s")
    show_table(console, as_table(point))
    console.print()
