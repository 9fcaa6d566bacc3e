"""`visipruner analyze` from checked arguments to the report; every finished sample stays on disk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from visipruner.cli import saving
from visipruner.cli.data import samples_of, with_progress
from visipruner.cli.errors import CliError
from visipruner.files import write_json
from visipruner.models import loading as models
from visipruner.words import spans

if TYPE_CHECKING:
    from visipruner.analysis.stages import Stages
    from visipruner.analysis.summary import Study
    from visipruner.contract.pruner import Pruner
    from visipruner.evaluation.samples import Sample
    from visipruner.models.loading import LoadedModel
    from visipruner.pruners.visipruner import VisiPruner

SCHEMA = "visipruner.analysis/1"
ANALYSIS_FILE = "analysis.json"
FROZEN_FOLDER = "frozen"


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
    metric: str
    tolerance: float | None
    max_new_tokens: int
    dtype: str
    attn: str
    device: str
    allow_download: bool


def execute(job: Job) -> None:
    """Measures, reads off the stages, writes analysis.json, pruner.json, frozen/pruner.json, report.html.

    Raises CliError and its kin."""
    from visipruner.analysis.parts import NEEDED_FOR_STAGES, PARTS
    from visipruner.analysis.report.analysis import write_report  # what it needs is missed now, not after hours
    from visipruner.analysis.study import Task, check_folder, measure
    from visipruner.analysis.summary import Study
    from visipruner.evaluation.samples import spread
    from visipruner.models.fingerprint import fingerprint

    parts = tuple(dict.fromkeys(job.only)) or tuple(PARTS)
    Task(job.model, "", "", parts)  # unknown parts are told before the model loads
    models.check_name(job.model)
    available = samples_of(job.model, job.data)
    chosen = spread(available, job.samples, job.seed)
    has_stages = set(NEEDED_FOR_STAGES) <= set(parts)
    if has_stages and job.metric == "accuracy" and not all(sample.answers for sample in chosen):
        raise CliError("--metric accuracy needs the right answer of every sample; take kl or agreement.")
    saving.prepare_folder(job.out)
    models.prepare(job.model)
    status = Console(stderr=True)
    with status.status(f"Loading {job.model}"):
        loaded = models.load(job.model, job.dtype, job.attn, job.allow_download, job.device)
    task = Task(job.model, loaded.dtype, loaded.attn, parts, job.max_new_tokens, fingerprint(loaded.model))
    check_folder(job.out, task)
    started = time.perf_counter()
    measuring = measure(loaded.model, loaded.processor, chosen, task, job.out)
    study = Study(list(with_progress(measuring, len(chosen), status, "Analysing samples")))
    document = _document(job, loaded, study)
    stages = None
    if has_stages:
        stages = _add_stages(job, loaded, study, chosen, document, status)
        if stages.pruner is not None:
            pruners = _to_check(job, stages.pruner, document)
            images = {sample.image for sample in chosen}
            others = [sample for sample in available if sample.image not in images]
            _add_check(job, loaded, pruners, others, document, status)
    else:
        document |= _kept(job.out / ANALYSIS_FILE, document)
    document["seconds"]["this_run"] = round(time.perf_counter() - started, 1)
    write_json(job.out / ANALYSIS_FILE, document)
    write_report(job.out / "report.html", document, study.records)
    _conclude(Console(highlight=False), job, document, stages)


def _document(job: Job, loaded: LoadedModel, study: Study) -> dict[str, Any]:
    from visipruner.models.shape import ModelShape

    seconds: dict[str, float] = {}
    for record in study.records:
        for part, spent in record["seconds"].items():
            seconds[part] = round(seconds.get(part, 0.0) + spent, 3)
    shape = ModelShape.from_config(loaded.model.config.get_text_config())
    return {
        "schema": SCHEMA,
        "model": {
            "name": job.model,
            "class": type(loaded.model).__name__,
            "layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "visual_tokens": study.visual_tokens,
            "dtype": loaded.dtype,
            "attention": loaded.attn,
        },
        "settings": {
            "data": "the shipped test set" if job.data is None else job.data.name,
            "samples": len(study.records),
            "seed": job.seed,
            "max_new_tokens": job.max_new_tokens,
            "plan": study.plan,
        },
        "versions": {name: version(name) for name in ("visipruner", "torch", "transformers")},
        "seconds": {"by_part": seconds},
        **study.summary(),
    }


def _kept(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The stages and the check of an earlier run, where the evidence for them is still what `document` holds."""
    from visipruner.analysis.parts import NEEDED_FOR_STAGES

    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = json.loads(json.dumps(document))
    if any(before.get(name) != now.get(name) for name in ("model", "settings", *NEEDED_FOR_STAGES)):
        return {}
    return {name: before[name] for name in ("stages", "check") if name in before}


def _add_stages(
    job: Job, loaded: LoadedModel, study: Study, samples: list[Sample], document: dict[str, Any], console: Console
) -> Stages:
    from visipruner.analysis.joint import TRIES
    from visipruner.contract.pruner import FILE_NAME

    settling = study.settled(
        loaded.model,
        loaded.processor,
        samples,
        job.metric,  # type: ignore[arg-type]
        job.tolerance,
        job.max_new_tokens,
    )
    stages: Stages = list(with_progress(settling, TRIES, console, "Trying settings"))[-1]
    document["stages"] = stages.to_dict()
    for folder in (job.out, job.out / FROZEN_FOLDER):  # an earlier run may have proposed more
        (folder / FILE_NAME).unlink(missing_ok=True)
    if stages.pruner is not None:
        stages.pruner.check(stages.num_layers)
        stages.pruner.save_pretrained(job.out)
    return stages


def _to_check(job: Job, proposed: VisiPruner, document: dict[str, Any]) -> dict[str, Pruner]:
    """The proposed settings, those with idle layers frozen, which are saved here, and the paper's."""
    from visipruner.analysis.idle import full_layers, idle_layers
    from visipruner.pruners.composed import Composed
    from visipruner.pruners.shortv import ShortV
    from visipruner.pruners.visipruner import VisiPruner

    pruners: dict[str, Pruner] = {"proposed": proposed}
    if idle := idle_layers(document, full_layers(proposed)):
        frozen = Composed(parts=(ShortV(layers=idle), proposed))
        frozen.save_pretrained(job.out / FROZEN_FOLDER)
        pruners[f"proposed, frozen in {spans(idle)}"] = frozen
    return pruners | {"paper (LLaVA-1.5's numbers)": VisiPruner.paper()}


def _add_check(
    job: Job,
    loaded: LoadedModel,
    pruners: dict[str, Pruner],
    others: list[Sample],
    document: dict[str, Any],
    console: Console,
) -> None:
    """How the settings do on samples whose images were not analysed; without any a note."""
    from visipruner.analysis.check import check
    from visipruner.evaluation.samples import spread

    samples = spread(others, job.checked, job.seed, per_image=4)
    if not samples:
        why = "no images were left for that" if job.checked else "--checked 0"
        note = f"The proposed settings were not tried on images that were not analysed ({why})."
        document["stages"]["notes"] = [*document["stages"]["notes"], note]
        return
    answered = check(loaded.model, loaded.processor, pruners, samples, job.max_new_tokens)
    document["check"] = list(with_progress(answered, len(pruners) + 1, console, "Checking on other images"))


def _conclude(console: Console, job: Job, document: dict[str, Any], stages: Stages | None) -> None:
    from visipruner.analysis.report.notes import notes

    if stages is not None:
        overall = stages.overall
        layers = stages.num_layers

        def told(interval: Any) -> str:
            return "none" if interval is None else f"{interval.value:.0f} ({interval.low:.0f}-{interval.high:.0f})"

        console.print(f"[bold]Stages of {job.model}[/bold], {layers} layers, {overall.samples} samples")
        console.print(f"  shallow ends before layer  {told(overall.shallow_end)}")
        for part in overall.fusion:
            console.print(
                f"  fusion in layers           {part.first_layer}-{part.last_layer}, "
                f"{stages.metric} {part.loss.value:.2f} ({part.loss.low:.2f}-{part.loss.high:.2f}) without"
            )
        console.print(f"  vision can leave at layer  {told(overall.exit_layer)}")
    for note in notes(document):
        console.print(f"  [dim]{note}[/dim]")
    for row in document.get("check", []):
        console.print(
            f"  {row['name']}: accuracy {_share(row['accuracy'])}, same answer {_share(row['agreement'])}, "
            f"FLOPs cut {row['flops_cut']:.1%}"
        )
    console.print(f"Report: {job.out / 'report.html'}")


def _share(interval: dict[str, float] | None) -> str:
    return "-" if interval is None else f"{interval['value']:.1%} ({interval['low']:.1%}-{interval['high']:.1%})"
