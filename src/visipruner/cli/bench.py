"""`visipruner bench`: its options, and tables of seconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner.cli.console import Status, output, print_json, show_table
from visipruner.cli.errors import CliError
from visipruner.cli.options import RULE, AllowDownload, AsJson, Attention, DType, Implementation, command, given, option

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

    shape: str | None = option(
        None,
        "NAME",
        "A shape that ships (tiny, llava-1.5-7b, llava-1.5-13b, llava-onevision-0.5b, qwen2-vl-2b, qwen2-vl-7b, "
        "qwen2.5-vl-7b, internvl3-8b) or a config.json. Weights are random.",
        shown="llava-1.5-7b; a check's own",
    )
    model: str | None = option(
        None,
        "NAME",
        "A real checkpoint in place of a shape, asked about a picture: as for run.",
        shown="a random shape",
    )
    image: Path | None = option(None, "FILE", "With --model: the picture.", shown="one that ships")
    question: str | None = option(None, "TEXT", "With --model: the question.", shown="Describe the image.")
    check: list[str] | None = option(
        None,
        "NAME",
        "Measure a promise of docs/performance.md and say whether it is kept: prefill, overhead, scaling, batch, "
        "questions, host, or all; and gpu, where there is one. Repeatable.",
    )
    method: list[str] | None = option(
        None,
        "SPEC",
        f"A method; + joins two. Repeatable. {RULE}",
        shown="visipruner without shallow stage, with it, and with shallow_visual=ffn",
    )
    schedule: str | None = option(
        None,
        "LAYERS",
        "Where visipruner filters, how many tokens it keeps, and where they leave. Its evidence is computed all the "
        "same.",
        shown="filter=14,keep=10,exit=20 at 32 layers",
    )
    visual: list[int] | None = option(None, "N", "Visual tokens of the prompt. Repeatable.", min=1, shown="576")
    before: int | None = option(None, "N", "Text tokens before them.", min=1, shown="35")
    after: int | None = option(None, "N", "Text tokens after them.", min=1, shown="13")
    batch: int | None = option(None, "N", "Prompts at a time.", min=1, shown="1")
    new_tokens: int | None = option(None, "N", "Tokens to generate.", min=1, shown="8")
    rounds: int | None = option(None, "N", "Every method runs once a round.", min=1, shown="3; a check's own")
    layers: int | None = option(None, "N", "Only so many decoder layers.", min=4, shown="all")
    tie_layers: bool | None = option(
        None,
        "",
        "Let all layers share one layer's weights, which costs the same time and little memory.",
        "--tie-layers/--no-tie-layers",
        shown="where they would not fit",
    )
    dtype: DType = option(DType.AUTO, "NAME", "auto is bfloat16, or float32 where the processor is slow at bfloat16.")
    attn: Implementation = Attention.SDPA
    device: str = option("cpu", "NAME", "cpu or cuda.")
    allow_download: AllowDownload = False
    warm_up: bool = option(
        True, "", "Run everything once before, uncounted; else only the text.", "--warm-up/--no-warm-up"
    )
    out: Path | None = option(None, "DIR", "Save results as JSON, tables and charts.")
    as_json: AsJson = False


@command(BenchOptions, EXAMPLES)
def bench(options: BenchOptions) -> None:
    """Measure speed and memory of pruning at real shapes, with random weights, against dense and what FLOPs promise."""
    if options.model is None and given(options, "image", "question"):
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
    from visipruner.speed import bench_model
    from visipruner.speed.bench import check_device

    if given(options, "shape", "check", "visual", "batch", "before", "after", "layers", "tie_layers"):
        raise CliError(
            "--model brings its own size and prompt; leave out --shape, --check, --visual, --before, --after, --batch, "
            "--layers and --tie-layers."
        )
    check_device(options.device)
    document = bench_model(
        model,
        **given(options, "image", "question", "schedule", "new_tokens", "rounds", "warm_up", "out", methods="method"),
        load=given(options, "dtype", "attn", "device", "allow_download"),
        progress=Status(),
    )
    if not options.as_json:
        _show_model(document["model"])
        _show(document["points"][0])
    return document


def _of_checks(options: BenchOptions, names: list[str]) -> dict[str, Any]:
    from visipruner.speed import Effort, bench_checks

    if given(options, "method", "batch", "schedule", "before", "after"):
        raise CliError(
            "--check brings its own methods, schedule and prompts; leave out --method, --schedule, --before, --after "
            "and --batch."
        )
    effort = Effort(
        **given(options, "shape", "layers", "rounds", "visual", "dtype", "device", "attn", tie="tie_layers")
    )
    show = None if options.as_json else _show_check
    return bench_checks(names, effort, out=options.out, each=show, progress=Status())


def _of_shape(options: BenchOptions) -> dict[str, Any]:
    from visipruner.speed import bench_shape

    size = given(options, "shape", "visual", "before", "after", "batch", "layers", tie="tie_layers")
    how = given(options, "schedule", "new_tokens", "rounds", "warm_up", "dtype", "attn", "device", methods="method")
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
    _show_model(result.model, f"{result.name}: ")
    for point in result.points:
        _show(point)
    for target in result.targets:
        output().print(str(target), markup=False)


def _show_model(model: dict[str, Any], before: str = "") -> None:
    notes = "".join(f"; {note}" for note in model["notes"])
    output().print(f"[bold]{before}{model['name']}[/bold], {model['dtype']}{notes}")


def _show(point: dict[str, Any]) -> None:
    from visipruner.speed.report import as_table

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
