"""`python -m research ...`: fetch pictures, draw scenes, train the small model, and run the study of training."""

from pathlib import Path
from typing import Annotated

import typer

from visipruner.cli.errors import reports_errors
from visipruner.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="What made the small model of visipruner-testbed, and the study of training; run from a checkout.",
)

_FETCH_EXAMPLE = "Example: python -m research fetch emoji --stamps"
_DRAW_EXAMPLE = "Example: python -m research draw --emoji emoji --out my-test --seed mine --pictures 20"
_DRAW_PART_EXAMPLE = "Example: python -m research draw-part photographs --emoji emoji --out photographs"
_GUIDELINES_EXAMPLE = "Example: python -m research guidelines --emoji emoji --out guidelines"
_TRAIN_EXAMPLE = "Example: python -m research train --emoji emoji --out run --resume"


@app.command(epilog=_FETCH_EXAMPLE)
@reports_errors
def fetch(
    folder: Annotated[Path, typer.Argument(help="Where the pictures go (about 60 MB, with --stamps 250).")],
    stamps: Annotated[
        bool,
        typer.Option("--stamps", help="Also photographs, Debian's tuxpaint-stamps-default, through apt-get."),
    ] = False,
) -> None:
    """Fetch the freely licensed pictures that scenes are drawn with, emoji through npm."""
    from research.fetch import PACKAGES, STAMPS, fetch_emoji, fetch_stamps
    from research.scenes.photographs import FOLDER

    fetch_emoji(folder)
    if stamps:
        fetch_stamps(folder)
        typer.echo(f"{folder / FOLDER}: photographs, GPL-2, from Debian's {STAMPS}")
    for package in PACKAGES:
        typer.echo(f"{folder / package.style}: {package.licence}, from {package.package} {package.version}")


@app.command(epilog=_DRAW_EXAMPLE)
@reports_errors
def draw(
    emoji: Annotated[Path, typer.Option(help="Folder made by `fetch`.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and questions.jsonl.")],
    seed: Annotated[str, typer.Option(help="Any word; the shipped test set is `test-1`.")] = "test-1",
    pictures: Annotated[int, typer.Option(min=0, help="Scenes of trained things.")] = 302,
    unseen: Annotated[
        int, typer.Option(min=0, help="Scenes of each unseen kind: combinations, drawing style, things.")
    ] = 66,
    questions: Annotated[int, typer.Option(min=1, help="Questions per picture, at most.")] = 7,
) -> None:
    """Draw a test set; the same seed gives the same pictures and questions."""
    from tqdm import tqdm

    from research.drawing import draw_test_set

    with tqdm(total=pictures + 3 * unseen, desc="drawing", disable=None) as bar:
        count = draw_test_set(emoji, out, pictures, unseen, questions, seed, lambda: bar.update())
    typer.echo(f"{count} questions about {pictures + 3 * unseen} pictures in {out}")


@app.command(epilog=_DRAW_PART_EXAMPLE)
@reports_errors
def draw_part(
    part: Annotated[
        str, typer.Argument(help="local, many, documents, or photographs (which are fetched with --stamps).")
    ],
    emoji: Annotated[Path, typer.Option(help="Folder made by `fetch`.")],
    out: Annotated[Path, typer.Option(help="Folder for pictures and questions.jsonl.")],
    seed: Annotated[str, typer.Option(help="Any word; the shipped parts are of `few-1`.")] = "few-1",
    pictures: Annotated[int | None, typer.Option(min=1, help="How many. [default: (as many as ship)]")] = None,
) -> None:
    """Draw a part of the test set in which few tokens decide; the same seed gives the same pictures and questions."""
    from tqdm import tqdm

    from research.parts import SIZES, Size
    from research.parts import draw_part as draw

    if part not in SIZES:
        raise ConfigError(f"There is no part {part!r}; there are {', '.join(SIZES)}.")
    size = Size(pictures or SIZES[part].pictures, SIZES[part].questions)
    with tqdm(total=size.pictures, desc="drawing", disable=None) as bar:
        count = draw(emoji, out, part, size, seed, lambda: bar.update())
    typer.echo(f"{count} questions about {size.pictures} pictures in {out}")


@app.command(epilog=_TRAIN_EXAMPLE)
@reports_errors
def train(
    emoji: Annotated[Path, typer.Option(help="Folder made by `fetch`.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and weights.")],
    images: Annotated[
        int | None, typer.Option(min=2, help="Pictures of the last part. [default: (the recipe's)]")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue from the last checkpoint in OUT; only --images may be another.")
    ] = False,
    continue_from: Annotated[
        Path | None,
        typer.Option(help="Folder of an earlier training to go on from, in place of all parts but the last."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the frozen language model: bfloat16 pays only on processors that have it.")
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option(help="Any word; which scenes the last part draws. Take another when going on once more."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
    export: Annotated[bool, typer.Option(help="Put the result where the package reads its weights.")] = False,
) -> None:
    """Train from the packaged parts: vision tower and projector first, then the language model, part by part."""
    import torch

    from research.training.course import course_logs, run_course
    from research.training.curve import plot_logs
    from visipruner_testbed.assembly.trained import export_trained

    torch.set_num_threads(threads)
    weights = run_course(emoji, out, images, resume, continue_from, dtype, seed)
    plot_logs(course_logs(out), out / "curve.png")
    typer.echo(export_trained(out) if export else weights)


@app.command(epilog=_GUIDELINES_EXAMPLE)
@reports_errors
def guidelines(
    emoji: Annotated[Path, typer.Option(help="Folder made by `fetch`; fetched if it is not there.")],
    out: Annotated[Path, typer.Option(help="Folder for runs and results; an interrupted experiment goes on from it.")],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm.")] = 3,
    pictures: Annotated[int, typer.Option(min=2, help="Pictures of each training.")] = 100,
    questions: Annotated[int, typer.Option(min=1, help="Questions about each picture.")] = 8,
    test_pictures: Annotated[int, typer.Option(min=1, help="Pictures asked about after each training.")] = 50,
    inject: Annotated[int, typer.Option(min=0, help="(a): first layer with visual rows.")] = 12,
    also: Annotated[
        list[str] | None,
        typer.Option(
            help="One more arm: FIRST-EXIT, with /A-B for frozen layers and :LAYER=TOKENS for fewer tokens, as 8-24, "
            "8-24:11=64 or 0-24/2-9/20-23. Repeatable."
        ),
    ] = None,
    exit_layer: Annotated[int, typer.Option("--exit", min=1, help="(c): first layer without them again.")] = 24,
    filter_layer: Annotated[int, typer.Option(min=0, help="(b): the layer that chooses tokens.")] = 15,
    keep_tokens: Annotated[int, typer.Option(min=1, help="(b): tokens that go on after it.")] = 64,
    learnt: Annotated[bool, typer.Option(help="Also an arm whose start and exit are learnt.")] = False,
    start: Annotated[
        str, typer.Option(help="shipped: the trained weights; warm: the warm-started projector alone (needs more).")
    ] = "shipped",
    lora_rate: Annotated[float, typer.Option(min=0, help="Learning rate of LoRA.")] = 4e-4,
    timed: Annotated[int, typer.Option(min=1, help="Rounds of the timing, all arms in turns.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
) -> None:
    """Does the paper's advice for training hold here? Plain, late, exiting and sparse models on the same lessons."""
    from research.guidelines.arms import Span, Stages
    from research.guidelines.command import run_guidelines
    from research.guidelines.learner import Pace
    from research.guidelines.runner import Plan

    plan = Plan(
        stages=Stages(inject, exit_layer, filter_layer, keep_tokens, tuple(map(Span.read, also or ()))),
        learnt=learnt,
        seeds=seeds,
        pictures=pictures,
        questions=questions,
        test_pictures=test_pictures,
        timed=timed,
        start=start,
        pace=Pace(lora_rate=lora_rate),
    )
    run_guidelines(plan, out, emoji, threads)
    typer.echo((out / "table.md").read_text())
