"""The samples a command runs over, and a progress bar for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner.cli.errors import CliError
from visipruner.models import packaged

if TYPE_CHECKING:
    from rich.console import Console

    from visipruner.evaluation.datasets import Benchmark
    from visipruner.evaluation.samples import Sample


def samples_of(model: str, data: Path | None) -> list[Sample]:
    """`--data`, or the samples that a packaged model brings. Raises CliError where there is neither."""
    from visipruner.evaluation.samples import load_samples

    return load_samples(data or _shipped(model))


def task_of(model: str, data: Path | None, name: str | None, images: Path | None) -> Benchmark:
    """`--data` read as the benchmark it is or is said to be, or as one's own questions.

    Args:
        images: where images go that a benchmark's question file holds; None for a temporary folder.

    Raises CliError or ConfigError.
    """
    from visipruner.evaluation.datasets import open_benchmark, recognises
    from visipruner.evaluation.datasets.easyvqa import PACKAGE
    from visipruner.evaluation.datasets.own import OwnQuestions

    if name == PACKAGE and data is None:
        data = Path(PACKAGE)
    if name is not None and data is None:
        raise CliError("--benchmark needs to know where its files are: --data FOLDER.")
    if data is not None and (name is not None or recognises(data)):
        return open_benchmark(data, name, images)
    return OwnQuestions.read(data or _shipped(model))


def _shipped(model: str) -> Path:
    brought = packaged.find(model)
    if brought is None or brought.questions is None:
        raise CliError("Give the image-question pairs with --data FILE.jsonl; this model brings none of its own.")
    return brought.questions


def with_progress(records: Iterable[Any], total: int, console: Console, what: str) -> Iterator[Any]:
    """Passes records on and shows on `console` how many there were."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        for record in records:
            progress.advance(task)
            yield record
