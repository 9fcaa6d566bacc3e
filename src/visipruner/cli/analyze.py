"""`visipruner analyze` from checked arguments to the report; every finished sample stays on disk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from visipruner.cli.errors import CliError
from visipruner.cli.options import ModelOptions, Seed, command
from visipruner.files import prepare_folder, write_json
from visipruner.models import loading as models
from visipruner.models import shipped
from visipruner.words import spans

if TYPE_CHECKING:
    from visipruner.analysis.stages import Stages
    from visipruner.analysis.summary import Study
    from visipruner.cli.console import Status
    from visipruner.contract.pruner import Pruner
    from visipruner.evaluation.samples import Sample
    from visipruner.models.loading import LoadedModel
    from visipruner.pruners.visipruner import VisiPruner

SCHEMA = "visipruner.analysis/1"
ANALYSIS_FILE = "analysis.json"
FROZEN_FOLDER = "frozen"


EXAMPLES = """
visipruner analyze --out analysis/

visipruner analyze --out quick/ --samples 8 --only sweeps --only lens

visipruner analyze --model ~/models/llava-1.5-7b-hf --data pairs.jsonl --out analysis/ --dtype bfloat16

visipruner run photo.jpg -q "What is this?" --config analysis/pruner.json
"""


class Metric(StrEnum):
    """How an analysis measures what is lost."""

    KL = "kl"
    AGREEMENT = "agreement"
    ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class AnalyzeOptions(ModelOptions):
    """Of `visipruner analyze`."""

    out: Annotated[Path, typer.Option(metavar="DIR", help="Results go here; an interrupted analysis goes on from it.")]
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL: image (relative to the file), question, and if known answer or answers, type.",
            show_default="the shipped test set, for the testbed",
        ),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            help="Only these parts (repeatable): attention, sweeps, shallow, skip, freeze, freeze_blocks, cache, "
            "influence, scores, lens. Stages need sweeps, influence and scores.",
            show_default="all",
        ),
    ] = None
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="How many, spread over images and types.")] = 64
    checked: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Samples of other images on which the proposed settings are tried."),
    ] = 64
    metric: Annotated[
        Metric,
        typer.Option(help="What a loss is: KL to the dense answer (nats), answers changed, right answers lost."),
    ] = Metric.KL
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="Loss that counts as none.",
            show_default="0.05 nats, 0.05 of agreement, 0.02 of accuracy",
        ),
    ] = None
    seed: Seed = 0


@command(AnalyzeOptions, EXAMPLES)
def analyze(options: AnalyzeOptions) -> None:
    """Find out where a model uses its visual tokens: stages, sinks, fusion, exit.

    Writes analysis.json, report.html, pruner.json with settings for VisiPruner that the evidence supports, and
    frozen/pruner.json with the same and ShortV in layers that need not work on the image, where there are any.
    """
    execute(options)


def execute(job: AnalyzeOptions) -> None:
    """Measures, reads off the stages, writes analysis.json, pruner.json, frozen/pruner.json, report.html.

    Raises CliError and its kin."""
    from visipruner.analysis.parts import NEEDED_FOR_STAGES, PARTS
    from visipruner.analysis.report.analysis import write_report  # what it needs is missed now, not after hours
    from visipruner.analysis.study import Task, check_folder, measure
    from visipruner.analysis.summary import Study
    from visipruner.cli.console import Status
    from visipruner.evaluation.samples import check_questions, load_samples, spread
    from visipruner.models.fingerprint import fingerprint

    parts = tuple(dict.fromkeys(job.only or [])) or tuple(PARTS)
    Task(job.model, "", "", parts)  # unknown parts are told before the model loads
    models.check_name(job.model)
    available = load_samples(job.data or shipped.data_of(job.model))
    chosen = spread(available, job.samples, job.seed)
    has_stages = set(NEEDED_FOR_STAGES) <= set(parts)
    if has_stages and job.metric == "accuracy" and not all(sample.answers for sample in chosen):
        raise CliError("--metric accuracy needs the right answer of every sample; take kl or agreement.")
    prepare_folder(job.out)
    models.prepare(job.model)
    status = Status()
    with status.busy(f"Loading {job.model}"):
        loaded = models.load(job.model, **job.loading())
    check_questions(chosen, loaded.processor)
    task = Task(job.model, loaded.dtype, loaded.attn, parts, job.max_new_tokens, fingerprint(loaded.model))
    check_folder(job.out, task)
    started = time.perf_counter()
    measuring = measure(loaded.model, loaded.processor, chosen, task, job.out)
    study = Study(list(status.over(measuring, len(chosen), "Analysing samples")))
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


def _document(job: AnalyzeOptions, loaded: LoadedModel, study: Study) -> dict[str, Any]:
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
    job: AnalyzeOptions,
    loaded: LoadedModel,
    study: Study,
    samples: list[Sample],
    document: dict[str, Any],
    console: Status,
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
    stages: Stages = list(console.over(settling, TRIES, "Trying settings"))[-1]
    document["stages"] = stages.to_dict()
    for folder in (job.out, job.out / FROZEN_FOLDER):  # an earlier run may have proposed more
        (folder / FILE_NAME).unlink(missing_ok=True)
    if stages.pruner is not None:
        stages.pruner.check(stages.num_layers)
        stages.pruner.save_pretrained(job.out)
    return stages


def _to_check(job: AnalyzeOptions, proposed: VisiPruner, document: dict[str, Any]) -> dict[str, Pruner]:
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
    job: AnalyzeOptions,
    loaded: LoadedModel,
    pruners: dict[str, Pruner],
    others: list[Sample],
    document: dict[str, Any],
    console: Status,
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
    document["check"] = list(console.over(answered, len(pruners) + 1, "Checking on other images"))


def _conclude(console: Console, job: AnalyzeOptions, document: dict[str, Any], stages: Stages | None) -> None:
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
