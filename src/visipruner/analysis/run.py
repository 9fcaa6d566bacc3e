"""A whole analysis in one call: measures, reads off the stages, tries settings, writes the report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visipruner.analysis.boundaries import Metric
from visipruner.analysis.joint import TRIES, Trial, check, settle
from visipruner.analysis.looks import Looks, settle_looks
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, PARTS, Task, check_folder, check_parts, measure
from visipruner.analysis.stages import Stages, full_layers, idle_layers
from visipruner.analysis.study import Study
from visipruner.contract.pruner import FILE_NAME, Pruner
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample, spread
from visipruner.files import write_json
from visipruner.models.fingerprint import fingerprint
from visipruner.models.shape import ModelShape
from visipruner.pruners.composed import Composed
from visipruner.pruners.shortv import ShortV
from visipruner.pruners.visipruner import VisiPruner
from visipruner.words import spans

SCHEMA = "visipruner.analysis/1"
ANALYSIS_FILE = "analysis.json"
REPORT_FILE = "report.html"
FROZEN_FOLDER, LOOKS_FOLDER = "frozen", "second-look"
Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found. All of it lies in `folder`, too.

    Attributes:
        folder: with analysis.json, report.html, headline.png, and where settings are proposed pruner.json.
        document: what analysis.json holds. stages: None where the parts they need were not asked for. looks: a schedule
            for `second-look`, None where it was not asked for.
    """

    folder: Path
    document: dict[str, Any]
    stages: Stages | None
    looks: Looks | None = None

    @property
    def pruner(self) -> VisiPruner | None:
        """The proposed settings, None where the data support none."""
        return None if self.stages is None else self.stages.pruner


def analyze(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    out: Path | str,
    *,
    parts: Sequence[str] = (),
    count: int = 64,
    checked: int = 64,
    metric: Metric = "kl",
    tolerance: float | None = None,
    second_look: bool = False,
    seed: int = 0,
    max_new_tokens: int = 32,
    name: str = "",
    data: str = "own samples",
    progress: Progress | None = None,
) -> Analysis:
    """Finds out where a model uses its visual tokens; what `visipruner analyze` does.

    Args:
        model, processor, metric, tolerance, max_new_tokens: see `find_stages`.
        samples: image-question pairs, with or without answers (`visipruner.evaluation.samples.load_samples`).
        out: results go here; an interrupted analysis goes on from it, and parts can be added later.
        parts: names from `measuring.PARTS`; all by default. Stages need `NEEDED_FOR_STAGES`.
        count: how many samples are analysed, spread over images; checked: on how many others proposals are tried.
        second_look: also search for settings of `second-look`, saved in the folder of this name.
        seed: of the choice of samples. name, data: how the report calls the model and the samples.
        progress: given an iterable, its length at most and what is being done; returns an iterable of the same.

    Raises ConfigError where `out` holds an analysis of something else, and as `choose` does.
    """
    from visipruner.analysis.report import write_report  # what it needs is missed now, not after hours

    parts = [*parts, *NEEDED_FOR_STAGES] if parts and second_look else parts
    chosen, out = choose(samples, parts, count, metric, seed), Path(out)
    task = task_of(model, name, tuple(dict.fromkeys(parts)) or tuple(PARTS), max_new_tokens)

    def watched(items: Iterable[Any], total: int, what: str) -> list[Any]:
        return list(items if progress is None else progress(items, total, what))

    check_folder(out, task)
    started = time.perf_counter()
    study = Study(watched(measure(model, processor, chosen, task, out), len(chosen), "Analysing samples"))
    document = _document(model, task, study, seed, data)
    stages: Stages | None = None
    looks: Looks | None = None
    if set(NEEDED_FOR_STAGES) <= set(task.parts):
        trial, evidence = Trial(model, processor, chosen, metric, max_new_tokens), study.evidence(metric)
        stages = watched(settle(trial, evidence, tolerance, study.seed), TRIES, "Trying settings")[-1]
        document["stages"] = stages.to_dict()
        for folder in (out, out / FROZEN_FOLDER, out / LOOKS_FOLDER):  # an earlier run's settings do not stay behind
            (folder / FILE_NAME).unlink(missing_ok=True)
        pruners = _proposed(stages, document, out)
        if second_look:
            looking = settle_looks(trial, evidence, study.scored(metric), stages, study.seed)
            looks = watched(looking, TRIES + 3, "Trying second looks")[-1]
            document["second_look"] = looks.to_dict()
            pruners |= _saved("second look", looks.pruner, out / LOOKS_FOLDER, stages)
        if pruners:
            pruners["paper (LLaVA-1.5's numbers)"] = VisiPruner.paper()
            images = {sample.image for sample in chosen}
            others = spread([one for one in samples if one.image not in images], checked, seed, per_image=4)
            if others:
                answering = check(model, processor, pruners, others, max_new_tokens)
                document["check"] = watched(answering, len(pruners) + 1, "Checking on other images")
            else:
                why = "no images were left for that" if checked else "none were to be checked"
                note = f"The proposed settings were not tried on images that were not analysed ({why})."
                document["stages"]["notes"] = [*document["stages"]["notes"], note]
    else:
        document |= _kept(out / ANALYSIS_FILE, document)
    document["seconds"]["this_run"] = round(time.perf_counter() - started, 1)
    write_json(out / ANALYSIS_FILE, document)
    write_report(out / REPORT_FILE, document, study.records)
    return Analysis(out, document, stages, looks)


def find_stages(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    metric: Metric = "kl",
    tolerance: float | None = None,
    max_new_tokens: int = 32,
    folder: Path | None = None,
) -> Stages:
    """Where shallow ends, where fusion happens and where vision can leave, with intervals; and settings that follow.

    Args:
        model, processor: a stock multimodal model and its processor, with a chat template.
        samples: image-question pairs, with or without answers.
        metric: "kl", "agreement" with the dense answers, or "accuracy" where answers are known.
        tolerance: loss that counts as none, see `stages_from`; by default 0.05 nats, 0.05 or 0.02.
        folder: keeps every finished sample, so that an interrupted search goes on where it was.

    Raises ConfigError where `folder` holds an analysis of something else, other weights included.
    """
    task = task_of(model, "", NEEDED_FOR_STAGES, max_new_tokens)
    study = Study(list(measure(model, processor, samples, task, folder)))
    trial = Trial(model, processor, samples, metric, max_new_tokens)
    return list(settle(trial, study.evidence(metric), tolerance, study.seed))[-1]


def choose(
    samples: Sequence[Sample], parts: Sequence[str] = (), count: int = 64, metric: Metric = "kl", seed: int = 0
) -> list[Sample]:
    """The samples that are analysed.

    Raises ConfigError for unknown parts, or where stages are to be read off accuracy but an answer is not known.
    """
    check_parts(parts)
    chosen = spread(samples, count, seed)
    has_stages = not parts or set(NEEDED_FOR_STAGES) <= set(parts)
    if has_stages and metric == "accuracy" and not all(sample.answers for sample in chosen):
        raise ConfigError("The metric accuracy needs the right answer of every sample; take kl or agreement.")
    return chosen


def task_of(model: Any, name: str, parts: tuple[str, ...], max_new_tokens: int) -> Task:
    """What is to be measured of a loaded model, which is called by its own name where `name` is empty."""
    name = name or str(getattr(model.config, "name_or_path", ""))
    attention = str(model.config.get_text_config()._attn_implementation)
    return Task(name, str(model.dtype).removeprefix("torch."), attention, parts, max_new_tokens, fingerprint(model))


def _document(model: Any, task: Task, study: Study, seed: int, data: str) -> dict[str, Any]:
    """What analysis.json holds of the measurements."""
    seconds: dict[str, float] = {}
    for record in study.records:
        for part, spent in record["seconds"].items():
            seconds[part] = round(seconds.get(part, 0.0) + spent, 3)
    shape = ModelShape.from_config(model.config.get_text_config())
    return {
        "schema": SCHEMA,
        "model": {
            "name": task.model,
            "class": type(model).__name__,
            "layers": shape.num_layers,
            "hidden_size": shape.hidden_size,
            "visual_tokens": study.visual_tokens,
            "dtype": task.dtype,
            "attention": task.attn,
        },
        "settings": {
            "data": data,
            "samples": len(study.records),
            "seed": seed,
            "max_new_tokens": task.max_new_tokens,
            "plan": study.plan,
        },
        "versions": {name: version(name) for name in ("visipruner", "torch", "transformers")},
        "seconds": {"by_part": seconds},
        **study.summary(),
    }


def _proposed(stages: Stages, document: dict[str, Any], out: Path) -> dict[str, Pruner]:
    """The proposed settings, and those with idle layers frozen, both saved; empty where the data support none."""
    pruners = _saved("proposed", stages.pruner, out, stages)
    if stages.pruner is not None and (idle := idle_layers(document, full_layers(stages.pruner))):
        frozen = Composed(parts=(ShortV(layers=idle), stages.pruner))
        pruners |= _saved(f"proposed, frozen in {spans(idle)}", frozen, out / FROZEN_FOLDER, stages)
    return pruners


def _saved(name: str, pruner: Pruner | None, folder: Path, stages: Stages) -> dict[str, Pruner]:
    """The settings under their name in the check, and in a file; nothing where there are none."""
    if pruner is None:
        return {}
    pruner.check(stages.num_layers)
    pruner.save_pretrained(folder)
    return {name: pruner}


def _kept(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The stages, looks and check of an earlier run, where the evidence for them is still what `document` holds."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = json.loads(json.dumps(document))
    if any(before.get(name) != now.get(name) for name in ("model", "settings", *NEEDED_FOR_STAGES)):
        return {}
    return {name: before[name] for name in ("stages", "second_look", "check") if name in before}
