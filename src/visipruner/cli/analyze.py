"""`visipruner analyze`: from checked arguments to `visipruner.analyze`, and what it found in a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from visipruner.cli import saving
from visipruner.cli.data import samples_of, with_progress
from visipruner.models import loading as models

if TYPE_CHECKING:
    from visipruner.analysis.evidence import Metric
    from visipruner.analysis.run import Analysis


@dataclass(frozen=True)
class Job:
    """The arguments of one `visipruner analyze`."""

    model: str
    data: Path | None
    out: Path
    only: list[str]
    samples: int
    checked: int
    seed: int
    metric: Metric
    tolerance: float | None
    max_new_tokens: int
    dtype: str
    attn: str
    device: str
    allow_download: bool


def execute(job: Job) -> None:
    """Checks the arguments before the model loads, analyses, and prints what was found. Raises CliError and its kin."""
    from visipruner.analysis.parts import check_parts
    from visipruner.analysis.run import analyze, choose

    check_parts(job.only)
    models.check_name(job.model)
    available = samples_of(job.model, job.data)
    choose(available, job.only, job.samples, job.metric, job.seed)
    saving.prepare_folder(job.out)
    models.prepare(job.model)
    status = Console(stderr=True)
    with status.status(f"Loading {job.model}"):
        loaded = models.load(job.model, job.dtype, job.attn, job.allow_download, job.device)
    found = analyze(
        loaded.model,
        loaded.processor,
        available,
        job.out,
        parts=job.only,
        count=job.samples,
        checked=job.checked,
        metric=job.metric,
        tolerance=job.tolerance,
        seed=job.seed,
        max_new_tokens=job.max_new_tokens,
        name=job.model,
        data="the shipped test set" if job.data is None else job.data.name,
        progress=lambda items, total, what: with_progress(items, total, status, what),
    )
    _conclude(Console(highlight=False), job, found)


def _conclude(console: Console, job: Job, found: Analysis) -> None:
    from visipruner.analysis.report.notes import notes
    from visipruner.analysis.report.words import interval

    if (stages := found.stages) is not None:
        overall = stages.overall
        told = partial(_boundary, found.document["stages"]["overall"])
        console.print(f"[bold]Stages of {job.model}[/bold], {stages.num_layers} layers, {overall.samples} samples")
        console.print(f"  shallow ends before layer  {told('shallow_end')}")
        for part in overall.fusion:
            lost = interval(part.loss.to_dict(), 1, 2, "")
            where = "in layer " if part.first_layer == part.last_layer else "in layers"
            console.print(f"  fusion {where}           {part.layers}, {stages.metric} {lost} without")
        console.print(f"  vision can leave at layer  {told('exit_layer')}")
    for note in notes(found.document):
        console.print(f"  [dim]{note}[/dim]")
    for row in found.document.get("check", []):
        console.print(
            f"  {row['name']}: accuracy {interval(row['accuracy'])}, same answer {interval(row['agreement'])}, "
            f"FLOPs cut {row['flops_cut']:.1%}"
        )
    console.print(f"Report: {found.folder / 'report.html'}")


def _boundary(overall: dict[str, Any], name: str) -> str:
    from visipruner.analysis.report.words import layers

    return "none" if overall[name] is None else layers(overall[name])
