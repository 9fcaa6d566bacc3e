"""`visipruner testbed ...`: build the small model, test it, fetch pictures, draw scenes, train."""

from pathlib import Path
from typing import Annotated

import typer

from visipruner.cli.errors import reports_errors
from visipruner.files import write_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The small real model that ships with visipruner: build it, test it, or make it anew.",
)

_BUILD_EXAMPLE = "Example: visipruner testbed build --image-size 336"
_TEST_EXAMPLE = "Example: visipruner testbed test --limit 20 --json accuracy.json"
_FETCH_EXAMPLE = "Example: visipruner testbed fetch emoji"
_DRAW_EXAMPLE = "Example: visipruner testbed draw --emoji emoji --out my-test --seed mine --pictures 20"
_TRAIN_EXAMPLE = "Example: visipruner testbed train --emoji emoji --images 2000 --out run --resume"


@app.command(epilog=_BUILD_EXAMPLE)
@reports_errors
def build(
    image_size: Annotated[
        int, typer.Option(min=14, help="Picture side in pixels: 224 gives 256 visual tokens, 336 gives 576.")
    ] = 224,
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
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    attn: Annotated[str, typer.Option(help="Attention implementation: sdpa or eager.")] = "sdpa",
    image_size: Annotated[int, typer.Option(min=14, help="Picture side in pixels.")] = 224,
    blank: Annotated[bool, typer.Option(help="Also answer with the picture blanked.")] = True,
    folder: Annotated[Path | None, typer.Option(help="A test set made by `draw` instead of the shipped one.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="A training folder to test instead of the shipped weights.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write rows and every answer here.")] = None,
) -> None:
    """Accuracy per question type, beside the same model without its picture and the majority answer."""
    from visipruner.testbed.report import run_test

    result = run_test(folder, model, limit, batch_size, dtype, attn, image_size, blank)
    if json_file is not None:
        write_json(json_file, result)


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
    seed: Annotated[str, typer.Option(help="Any word; the shipped test set is `test-0`.")] = "test-0",
    pictures: Annotated[int, typer.Option(min=0, help="Scenes of trained things.")] = 84,
    unseen: Annotated[int, typer.Option(min=0, help="Scenes of unseen style, and as many with unseen things.")] = 16,
    questions: Annotated[int, typer.Option(min=1, help="Questions per picture, at most.")] = 6,
) -> None:
    """Draw a test set; the same seed gives the same pictures and questions."""
    from tqdm import tqdm

    from visipruner.testbed.drawing import draw_test_set

    with tqdm(total=pictures + 2 * unseen, desc="drawing", disable=None) as bar:
        count = draw_test_set(emoji, out, pictures, unseen, questions, seed, lambda: bar.update())
    typer.echo(f"{count} questions about {pictures + 2 * unseen} pictures in {out}")


@app.command(epilog=_TRAIN_EXAMPLE)
@reports_errors
def train(
    emoji: Annotated[Path, typer.Option(help="Folder made by `fetch`.")],
    images: Annotated[int, typer.Option(min=2, help="Pictures to learn from; the rate falls over the last fifth.")],
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, log and weights.")],
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in OUT.")] = False,
    continue_from: Annotated[
        Path | None, typer.Option(help="Folder of an earlier training to go on from, in place of a warm start.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the frozen language model: bfloat16 pays only on processors that have it.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads.")] = 2,
    export: Annotated[bool, typer.Option(help="Put the result where the package reads its weights.")] = False,
) -> None:
    """Train projector and LoRA from the packaged parts, or go on with many hard questions per picture."""
    import dataclasses

    import torch

    from visipruner.testbed.assembly.llava import assemble
    from visipruner.testbed.assembly.trained import export_trained
    from visipruner.testbed.training.curve import plot_log
    from visipruner.testbed.training.loop import LOG_FILE
    from visipruner.testbed.training.loop import train as run
    from visipruner.testbed.training.recipe import FIRST, SECOND

    torch.set_num_threads(threads)
    recipe = SECOND if continue_from else FIRST
    if dtype:
        recipe = dataclasses.replace(recipe, dtype=dtype)
    assembled = assemble()
    weights = run(assembled.model, assembled.processor, emoji, out, images, recipe, resume, continue_from=continue_from)
    plot_log(out / LOG_FILE, out / "curve.png")
    typer.echo(export_trained(out) if export else weights)
