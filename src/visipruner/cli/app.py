"""The commands and their help. Nothing heavy is imported here, so that help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visipruner.cli.errors import reports_errors
from visipruner.cli.mounted import mount
from visipruner.cli.options import (
    AllowDownload,
    AsJson,
    Attention,
    Axis,
    Data,
    Device,
    DType,
    EvalData,
    Implementation,
    MaxNewTokens,
    Metric,
    ModelName,
    Precision,
    Seed,
)

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


RUN_EXAMPLES = """
[bold]Examples[/bold]

visipruner run photo.jpg -q "What animal is this?"

visipruner run a.jpg b.jpg -q "How many people?" -q "What color is the car?" --compare --out out/

visipruner run photo.jpg -q "What is this?" --method none

visipruner run photo.jpg -q "What is this?" --set keep_tokens=32 --json

visipruner run photo.jpg -q "What is this?" --model ~/models/llava-1.5-7b-hf --dtype bfloat16
"""


@app.command(epilog=RUN_EXAMPLES)
@reports_errors
def run(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files. Every image is asked every question.")
    ],
    questions: Annotated[
        list[str], typer.Option("--question", "-q", metavar="TEXT", help="A question; may be given several times.")
    ],
    model: ModelName = "",
    method: Annotated[
        str | None,
        typer.Option(
            help="Pruning method with its own defaults, or first:key=value+second; 'none' prunes nothing. "
            "See: visipruner list",
            show_default="visipruner; calibrated, for a packaged model",
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A saved pruner.json (or its folder) instead of --method and --set."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", metavar="", help="Also answer without pruning, in turns, and compare answers and times."
        ),
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Timed answers of each kind under --compare, after one warm-up; medians count."
        ),
    ] = 3,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save results.json and one picture of the kept tokens per answer."),
    ] = None,
    as_json: AsJson = False,
    max_new_tokens: MaxNewTokens = 32,
    dtype: Precision = DType.AUTO,
    attn: Implementation = Attention.SDPA,
    device: Device = "",
    allow_download: AllowDownload = False,
) -> None:
    """Ask a multimodal model about images while its visual tokens are pruned.

    Shows the answer, how many visual tokens were kept and at which layer, and what that saved.
    """
    from visipruner.cli.run import Job, execute

    execute(
        Job(
            images=images,
            questions=questions,
            model=model,
            method=method,
            settings=setting or [],
            config=config,
            repeats=repeats if compare else None,
            out=out,
            as_json=as_json,
            max_new_tokens=max_new_tokens,
            dtype=dtype.value,
            attn=attn.value,
            device=device,
            allow_download=allow_download,
        )
    )


ANALYZE_EXAMPLES = """
[bold]Examples[/bold]

visipruner analyze --out analysis/

visipruner analyze --out quick/ --samples 8 --only sweeps --only lens

visipruner analyze --model ~/models/llava-1.5-7b-hf --data pairs.jsonl --out analysis/ --dtype bfloat16

visipruner run photo.jpg -q "What is this?" --config analysis/pruner.json
"""


@app.command(epilog=ANALYZE_EXAMPLES)
@reports_errors
def analyze(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results go here; an interrupted analysis goes on from it.")],
    model: ModelName = "",
    data: Data = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Only these parts (repeatable): attention, sweeps, shallow, skip, freeze, freeze_blocks, cache, "
            "influence, scores, lens. Stages need sweeps, influence and scores.",
            show_default="all",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many, spread over images and types.")] = 64,
    checked: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Samples of other images on which the proposed settings are tried."),
    ] = 64,
    metric: Annotated[
        Metric,
        typer.Option(help="What a loss is: KL to the dense answer (nats), answers changed, right answers lost."),
    ] = Metric.KL,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Loss that counts as none.",
            show_default="0.05 nats, 0.05 of agreement, 0.02 of accuracy",
        ),
    ] = None,
    seed: Seed = 0,
    max_new_tokens: MaxNewTokens = 32,
    dtype: Precision = DType.AUTO,
    attn: Implementation = Attention.SDPA,
    device: Device = "",
    allow_download: AllowDownload = False,
) -> None:
    """Find out where a model uses its visual tokens: stages, sinks, fusion, exit.

    Writes analysis.json, report.html, pruner.json with settings for VisiPruner that the evidence supports, and
    frozen/pruner.json with the same and ShortV in layers that need not work on the image, where there are any.
    """
    from visipruner.cli.analyze import Job, execute

    execute(
        Job(
            model=model,
            data=data,
            out=out,
            only=only or [],
            samples=samples,
            checked=checked,
            seed=seed,
            metric=metric.value,
            tolerance=tolerance,
            max_new_tokens=max_new_tokens,
            dtype=dtype.value,
            attn=attn.value,
            device=device,
            allow_download=allow_download,
        )
    )


EVAL_EXAMPLES = """
[bold]Examples[/bold]

visipruner eval --method visipruner --method fastv --samples 100 --out results/

visipruner eval --method all --match flops --cut 0.5 --samples 100 --out results/

visipruner eval --method 'divprune:keep_tokens=64+visipruner' --data pairs.jsonl --model ~/models/llava-1.5-7b-hf

visipruner eval --method fastv --data playground/data/eval/pope --model ~/models/llava-1.5-7b-hf --out results/
"""


@app.command("eval", epilog=EVAL_EXAMPLES)
@reports_errors
def eval_(
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="name, or name:key=value,... ; + joins two. Repeatable. A bare name has its published defaults, its "
            "layers moved to the same depth. 'all' is every method that runs on the model.",
            show_default="visipruner",
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[LABEL=]SPEC",
            help="As --method, with its settings as they are whatever --match says, and its own name in the table. "
            "Repeatable.",
        ),
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A saved pruner.json (or its folder), used as it is. Repeatable."),
    ] = None,
    model: ModelName = "",
    data: EvalData = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Read --data as this benchmark: gqa, pope, textvqa, vqav2, vizwiz, scienceqa, mme, mmbench, mmstar, "
            "mmvet, seedbench, easy-vqa.",
            show_default="recognised by its files",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How many, spread over images.", show_default="all")
    ] = None,
    match: Annotated[
        Axis | None, typer.Option(help="Give all methods the same budget; see --cut.", show_default="no")
    ] = None,
    cut: Annotated[
        list[float] | None,
        typer.Option(
            metavar="X", help="Share to cut of what --match names, above 0 and below 1 (0.5 is half). Repeatable."
        ),
    ] = None,
    share_images: Annotated[
        bool,
        typer.Option(
            "--share-images",
            metavar="",
            help="Questions about one image share the work on it: the same answers in less time. Seconds and FLOPs are "
            "then those of what was left to do.",
        ),
    ] = False,
    keep_sets: Annotated[
        bool,
        typer.Option("--keep-sets", metavar="", help="Also write which visual tokens each layer had to samples.jsonl."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Save results.json, table.md, chart.png, ranking.png, samples.jsonl; an interrupted run goes on.",
        ),
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    max_new_tokens: MaxNewTokens = 32,
    dtype: Precision = DType.AUTO,
    attn: Implementation = Attention.SDPA,
    device: Device = "",
    allow_download: AllowDownload = False,
) -> None:
    """Compare methods on the same samples: accuracy with paired intervals, what was cut, seconds against dense."""
    from visipruner.cli.evaluate import Job, execute

    execute(
        Job(
            methods=method or [],
            fixed=fixed or [],
            configs=config or [],
            model=model,
            data=data,
            benchmark=benchmark,
            out=out,
            samples=samples,
            seed=seed,
            match=None if match is None else match.value,
            cuts=cut or [],
            share_images=share_images,
            keep_sets=keep_sets,
            max_new_tokens=max_new_tokens,
            dtype=dtype.value,
            attn=attn.value,
            device=device,
            allow_download=allow_download,
            as_json=as_json,
        )
    )


BENCH_EXAMPLES = """
[bold]Examples[/bold]

visipruner bench --shape tiny

visipruner bench --shape llava-1.5-7b --schedule filter=14,keep=10,exit=20 --out bench/

visipruner bench --shape llava-onevision-0.5b --visual 576 --visual 2304 --method visipruner --method fastv

visipruner bench --model ~/models/llava-1.5-7b-hf --image photo.jpg --method visipruner --method fastv

visipruner bench --check all --out bench/
"""


@app.command(epilog=BENCH_EXAMPLES)
@reports_errors
def bench(
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A shape that ships (tiny, llava-1.5-7b, llava-1.5-13b, llava-onevision-0.5b, qwen2-vl-2b, "
            "qwen2-vl-7b, qwen2.5-vl-7b, internvl3-8b) or a config.json. Weights are random.",
            show_default="llava-1.5-7b; a check's own",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A real checkpoint in place of a shape, asked about a picture: as for run.",
            show_default="a random shape",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --model: the picture.", show_default="one that a package brings"),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --model: the question.", show_default="Describe the image."),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure a promise of docs/performance.md and say whether it is kept: prefill, overhead, scaling, "
            "batch, questions, or all. Repeatable.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="name, or name:key=value,... ; + joins two. Repeatable. A bare name has its published defaults, its "
            "layers moved to the same depth.",
            show_default="visipruner without shallow stage, with it, and with shallow_visual=ffn",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Where visipruner filters, how many tokens it keeps, and where they leave. Its evidence is computed "
            "all the same.",
            show_default="filter=14,keep=10,exit=20 at 32 layers",
        ),
    ] = None,
    visual: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Visual tokens of the prompt. Repeatable.", show_default="576"),
    ] = None,
    before: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Text tokens before them.", show_default="35")
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Text tokens after them.", show_default="13")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts at a time.")] = 1,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens to generate.")] = 8,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Every method runs once a round.", show_default="3; a check's own"),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=4, metavar="N", help="Only so many decoder layers.", show_default="all")
    ] = None,
    tie_layers: Annotated[
        bool | None,
        typer.Option(
            "--tie-layers/--no-tie-layers",
            metavar="",
            help="Let all layers share one layer's weights, which costs the same time and little memory.",
            show_default="where they would not fit",
        ),
    ] = None,
    dtype: Annotated[
        DType,
        typer.Option(metavar="NAME", help="auto is bfloat16, or float32 where the processor is slow at bfloat16."),
    ] = DType.AUTO,
    attn: Implementation = Attention.SDPA,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    allow_download: AllowDownload = False,
    warm_up: Annotated[
        bool,
        typer.Option(
            "--warm-up/--no-warm-up", metavar="", help="Run everything once before, uncounted; else only the text."
        ),
    ] = True,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Save results as JSON, tables and charts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory of pruning at real shapes, with random weights, against dense and what FLOPs promise."""
    from visipruner.cli.bench import Job, execute

    execute(
        Job(
            shape=shape,
            model=model,
            image=image,
            question=question,
            checks=check or [],
            methods=method or [],
            schedule=schedule,
            visual=visual or [],
            before=before,
            after=after,
            batch=batch,
            new_tokens=new_tokens,
            rounds=rounds,
            layers=layers,
            tie=tie_layers,
            dtype=dtype.value,
            attn=attn.value,
            device=device,
            allow_download=allow_download,
            warm_up=warm_up,
            out=out,
            as_json=as_json,
        )
    )


PLAN_EXAMPLES = """
[bold]Examples[/bold]

visipruner plan --analysis analysis/

visipruner plan --analysis analysis/ --shape 7b --shape ~/models/my-llava --visual 576 --text 100 --save plan.json
"""


@app.command(epilog=PLAN_EXAMPLES)
@reports_errors
def plan(
    analysis: Annotated[Path, typer.Option(metavar="DIR", help="What `visipruner analyze` wrote.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHAPE",
            help="7b, 13b (LLaVA-1.5), or a folder or file with a transformers config. Repeatable.",
            show_default="7b and 13b",
        ),
    ] = None,
    visual: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Visual rows of a prompt.", show_default="the shape's")
    ] = None,
    text: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Text rows of a prompt.", show_default="the paper's mean, 74")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything as JSON here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan a model that needs no pruning: which layers its visual rows should be in, and what each choice saves."""
    from visipruner.cli.plan import execute

    execute(analysis, shape or [], visual, text, save, as_json)


@app.command("list", epilog="[bold]Examples[/bold]\n\nvisipruner list\n\nvisipruner list --json")
@reports_errors
def list_(as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print as JSON.")] = False) -> None:
    """List the pruning methods and the model families."""
    from visipruner.cli.listing import show

    show(as_json)


mount(app)
