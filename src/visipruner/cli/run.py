"""`visipruner run` from checked arguments to results; cheap checks first, the model last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from visipruner.cli import saving, settings
from visipruner.cli.errors import CliError
from visipruner.files import write_atomic, write_json
from visipruner.images import open_image
from visipruner.models import loading as models

if TYPE_CHECKING:
    from PIL import Image

    from visipruner.cli.ask import Exchange
    from visipruner.cli.results import Result
    from visipruner.contract.pruner import Pruner
    from visipruner.models.loading import LoadedModel


@dataclass(frozen=True)
class Job:
    """The arguments of one `visipruner run`; `repeats` is None without `--compare`."""

    images: list[Path]
    questions: list[str]
    model: str
    method: str | None
    settings: list[str]
    config: Path | None
    repeats: int | None
    out: Path | None
    as_json: bool
    max_new_tokens: int
    dtype: str
    attn: str
    device: str
    allow_download: bool


def execute(job: Job) -> None:
    """Asks every image every question, shows and saves. Raises CliError and its kin."""
    if not all(question.strip() for question in job.questions):
        raise CliError('A question is empty; give it as -q "What is this?".')
    for path in job.images:
        # Only to complain early; a hundred photographs need not be in memory at once.
        open_image(path)
    models.check_name(job.model)
    if job.out is not None:
        saving.prepare_folder(job.out)
    status = Console(stderr=True)
    with status.status("Starting"):
        pruner = settings.make_pruner(job.method, job.settings, job.config, job.model)
    models.prepare(job.model)
    with status.status(f"Loading {job.model}"):
        loaded = models.load(job.model, job.dtype, job.attn, job.allow_download, job.device)
        pruner.check(loaded.model.config.get_text_config().num_hidden_layers)
    console = Console(highlight=False)
    results: list[Result] = []
    for result in _results(job, loaded, pruner, status):
        results.append(result)
        if job.out is not None:
            # After every answer, so that an interrupted run keeps what it has.
            write_json(job.out / "results.json", _document(job, loaded, pruner, results))
        if not job.as_json:
            _show(console, result)
    _conclude(job, _document(job, loaded, pruner, results), results, console)


def _results(job: Job, loaded: LoadedModel, pruner: Pruner, status: Console) -> Iterator[Result]:
    from visipruner.cli.ask import prepare
    from visipruner.cli.results import summarize

    for number, path in enumerate(job.images, start=1):
        picture = open_image(path)
        for question_number, question in enumerate(job.questions, start=1):
            with status.status("Answering"):
                inputs = prepare(loaded, picture, question)
                exchange = _exchange(job, loaded, pruner, inputs)
            result = summarize(path, question, exchange)
            if job.out is not None:
                name = saving.overlay_name(number, path, question_number)
                result.overlay = _save_overlay(job.out / name, loaded, picture, exchange, result)
            yield result


def _exchange(job: Job, loaded: LoadedModel, pruner: Pruner, inputs: dict[str, object]) -> Exchange:
    from visipruner.cli import ask

    if job.repeats is None:
        return ask.ask(loaded, pruner, inputs, job.max_new_tokens)
    return ask.compare(loaded, pruner, inputs, job.max_new_tokens, job.repeats)


def _save_overlay(
    path: Path, loaded: LoadedModel, picture: Image.Image, exchange: Exchange, result: Result
) -> str | None:
    """Draws and writes the picture of the kept tokens; None where the model's tokens are not one grid."""
    from visipruner.cli import overlay

    example = exchange.trace[0]
    if len(example.grids) != 1:  # several crops of the picture, of which none is the whole
        return None
    try:
        grid = example.kept_grid(0)
    except ValueError:
        return None
    box = overlay.seen_box(picture.size, loaded.processor.image_processor)
    drawn = overlay.draw(picture, grid, box, _caption(result))
    write_atomic(path, lambda part: drawn.save(part, format="PNG", optimize=True))
    return path.name


def _caption(result: Result) -> list[str]:
    kept = f"kept {result.kept_tokens} of {result.visual_tokens} visual tokens"
    layer = "" if result.trigger_layer is None else f", chosen at layer {result.trigger_layer}"
    gone = "" if result.exit_layer is None else f"; all gone from layer {result.exit_layer} on"
    return [result.question, result.answer or "(empty answer)", kept + layer + gone]


def _show(console: Console, result: Result) -> None:
    from visipruner.cli.present import show_result

    show_result(console, result)


def _document(job: Job, loaded: LoadedModel, pruner: Pruner, results: list[Result]) -> dict[str, Any]:
    from visipruner.cli.results import document

    return document(loaded, pruner, results, job.repeats)


def _conclude(job: Job, content: dict[str, Any], results: list[Result], console: Console) -> None:
    from visipruner.cli.present import show_agreement

    if job.as_json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return
    show_agreement(console, results)
    if job.out is not None:
        console.print(f"Saved to {job.out}")
