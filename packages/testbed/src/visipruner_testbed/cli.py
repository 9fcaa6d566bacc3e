"""`visipruner testbed ...`: build the small model and test it."""

from pathlib import Path
from typing import Annotated

import typer

from visipruner.cli.errors import reports_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="The small real model of visipruner-testbed: build it and test it.",
)

_BUILD_EXAMPLE = "Example: visipruner testbed build --image-size 224"
_TEST_EXAMPLE = "Example: visipruner testbed test --part local --part documents --limit 20 --json accuracy.json"


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
    from visipruner_testbed.build import ensure_built

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
    part: Annotated[
        list[str] | None,
        typer.Option(help="local, documents, or many: a part with small things instead of the test set. Repeatable."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="A test set drawn by `python -m research draw` instead of the shipped one.")
    ] = None,
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
    from visipruner_testbed.report import folders_of, run_test

    if dtype == "auto":
        dtype = str(faster_dtype()).removeprefix("torch.")
    other_dtype = "bfloat16" if dtype == "float32" else "float32"
    others = [(other_dtype, attn), (dtype, "eager" if attn == "sdpa" else "sdpa")] if full else []
    folders = folders_of(part or (), folder)
    run_test(folders, model, limit, batch_size, dtype, attn, image_size, blank, full, others, json_file)
