"""`visipruner analyze`: options, the call of the library, and what it found in a few lines."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from visipruner.cli.console import Status, output
from visipruner.cli.options import ModelOptions, Seed, command, flag, given, option

if TYPE_CHECKING:
    from visipruner.analysis.run import Analysis

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
    out: Path = option(MISSING, "DIR", "Results go here; an interrupted analysis goes on from it.")
    data: Path | None = option(
        None,
        "FILE",
        "JSONL: image (relative to the file), question, and if known answer or answers, type.",
        shown="what a packaged model brings",
    )
    only: list[str] | None = option(
        None,
        "PART",
        "Only these parts (repeatable): attention, sweeps, shallow, skip, freeze, freeze_blocks, cache, influence, "
        "scores, lens, control. Stages need sweeps, control, influence and scores.",
        shown="all",
    )
    samples: int = option(64, "N", "How many, spread over images and types.", min=1)
    checked: int = option(64, "N", "Samples of other images on which the proposed settings are tried.", min=0)
    metric: Metric = option(
        Metric.KL, None, "What a loss is: KL to the dense answer (nats), answers changed, right answers lost."
    )
    tolerance: float | None = option(
        None, "X", "Loss that counts as none.", min=0, shown="0.05 nats, 0.05 of agreement, 0.02 of accuracy"
    )
    second_look: bool = flag(
        "--second-look",
        "Also search settings for the method second-look, written to the folder second-look in --out.",
    )
    seed: Seed = 0


@command(AnalyzeOptions, EXAMPLES)
def analyze(options: AnalyzeOptions) -> None:
    """Find out where a model uses its visual tokens: stages, sinks, fusion, exit.

    Writes analysis.json, report.html, pruner.json with settings for VisiPruner that the evidence supports, and
    frozen/pruner.json with the same and ShortV in layers that need not work on the image, where there are any. With
    --second-look also second-look/pruner.json.
    """
    from visipruner.analysis.measuring import check_parts
    from visipruner.analysis.run import analyze as analyze_model
    from visipruner.analysis.run import choose
    from visipruner.evaluation.samples import check_questions, load_samples
    from visipruner.files import prepare_folder
    from visipruner.models import loading, packaged

    only = options.only or []
    check_parts(only)
    loading.check_name(options.model)
    available = load_samples(options.data or packaged.data_of(options.model))
    choose(available, only, options.samples, options.metric.value, options.seed)
    prepare_folder(options.out)
    status = Status()
    loaded = loading.ready(options.model, options.loading(), status)
    check_questions(available, loaded.processor)
    found = analyze_model(
        loaded.model,
        loaded.processor,
        available,
        options.out,
        **given(options, "checked", "metric", "tolerance", "second_look", "seed", "max_new_tokens"),
        **given(options, parts="only", count="samples", name="model"),
        data="the shipped test set" if options.data is None else options.data.name,
        progress=status.over,
    )
    _conclude(output(), options, found)


def _conclude(console: Console, options: AnalyzeOptions, found: Analysis) -> None:
    from visipruner.analysis.report.words import interval, layers, notes

    if (stages := found.stages) is not None:
        overall = stages.overall
        boundaries = found.document["stages"]["overall"]
        console.print(f"[bold]Stages of {options.model}[/bold], {stages.num_layers} layers, {overall.samples} samples")
        console.print(f"  shallow ends before layer  {layers(boundaries['shallow_end'], 'none')}")
        for part in overall.fusion:
            lost = interval(part.loss.to_dict(), 1, 2, "")
            where = "in layer " if part.first_layer == part.last_layer else "in layers"
            console.print(f"  fusion {where}           {part.layers}, {stages.metric} {lost} without")
        console.print(f"  vision can leave at layer  {layers(boundaries['exit_layer'], 'none')}")
    for note in notes(found.document):
        console.print(f"  [dim]{note}[/dim]")
    for row in found.document.get("check", []):
        console.print(
            f"  {row['name']}: accuracy {interval(row['accuracy'])}, same answer {interval(row['agreement'])}, "
            f"FLOPs cut {row['flops_cut']:.1%}"
        )
    console.print(f"Report: {found.folder / 'report.html'}")
