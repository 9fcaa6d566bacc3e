"""`visipruner testbed ...`: build the small model, test it, fetch pictures, draw scenes, train."""

from pathlib import Path
from typing import Annotated

import typer

from visipruner.cli.errors import reports_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The small real model that ships with visipruner: build it, test it, or make it anew.",
)

_BUILD_EXAMPLE = "Example: visipruner testbed build --image-size 224"
_TEST_EXAMPLE = "Example: visipruner testbed test --limit 20 --json accuracy.json"
_FETCH_EXAMPLE = "Example: visipruner testbed fetch emoji"
_DRAW_EXAMPLE = "Example: visipruner testbed draw --emoji emoji --out my-test --seed mine --pictures 20"
_GUIDELINES_EXAMPLE = "Example: visipruner testbed guidelines --emoji emoji --out guidelines"
_TRAIN_EXAMPLE = "Example: visipruner testbed train --emoji emoji --out run --resume"


@app.command(epilog=_BUILD_EXAMPLE)
@reports_errors
def build(
    image_size: Annotated[
        int, typer.Option(min=14, help="Picture side in pixels: 336 gives 576 visual tokens, 224 gives 256.")
    ] = 336,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where to put it; default $VISIPRUNER_CACHE or the user's cache.")
    ] = None,
) -> None:
    """Assemble the model into the cache directory (once, half a minute) and print its folder."""
    from visipruner.testbed.build import ensure_built

    typer.echo(ensure_built(image_size=image_size, cache_dir=cache_dir))


@app.command("test", epilog=_TEST_EXAMPLE)
@reports_errors
def measure(
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many pictures of each split.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 8,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: the one that this processor is faster at.")
    ] = "auto",
    attn: Annotated[str, typer.Option(help="Attention implementation: sdpa or eager.")] = "sdpa",
    image_size: Annotated[int, typer.Option(min=14, help="Picture side in pixels.")] = 336,
    blank: Annotated[bool, typer.Option(help="Also answer with the picture blanked.")] = True,
    folder: Annotated[Path | None, typer.Option(help="A test set made by `draw` instead of the shipped one.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A training folder to test instead of the shipped weights.")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            metavar="",
            help="Also easy-VQA's test part, and the scenes in the other precision and the other attention.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write rows and every answer here; with it an interrupted test goes on."),
    ] = None,
) -> None:
    """Accuracy per question type, beside the same model without its picture and the majority answer."""
    from visipruner.models.precision import faster_dtype
    from visipruner.testbed.report import run_test

    if dtype == "auto":
        dtype = str(faster_dtype()).removeprefix("torch.")
    other_dtype = "bfloat16" if dtype == "float32" else "float32"
    others = [(other_dtype, attn), (dtype, "eager" if attn == "sdpa" else "sdpa")] if full else []
    run_test(folder, model, limit, batch_size, dtype, attn, image_size, blank, full, others, json_file)


@app.command(epilog=_FETCH_EXAMPLE)
@reports_errors
def fetch(folder: Annotated[Path, typer.Argument(help="Where the pictures go (about 60 MB).")]) -> None:
    """Fetch the freely licensed emoji pictures that scenes are drawn with, through npm."""
    from visipruner.testbed.fetch import PACKAGES, fetch_emoji

    fetch_emoji(folder)
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

    from visipruner.testbed.drawing import draw_test_set

    with tqdm(total=pictures + 3 * unseen, desc="drawing", disable=None) as bar:
        count = draw_test_set(emoji, out, pictures, unseen, questions, seed, lambda: bar.update())
    typer.echo(f"{count} questions about {pictures + 3 * unseen} pictures in {out}")


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

    from visipruner.testbed.assembly.trained import export_trained
    from visipruner.testbed.training.course import course_logs, run_course
    from visipruner.testbed.training.curve import plot_logs

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
    from visipruner.testbed.guidelines.arms import Span, Stages
    from visipruner.testbed.guidelines.command import run_guidelines
    from visipruner.testbed.guidelines.learner import Pace
    from visipruner.testbed.guidelines.runner import Plan

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
