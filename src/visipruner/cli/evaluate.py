"""`visipruner eval` from checked arguments to a table; cheap checks first, the model last."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from rich.console import Console

from visipruner.cli import saving, settings, submissions
from visipruner.cli.data import task_of, with_progress
from visipruner.cli.errors import CliError
from visipruner.cli.matches import Matches
from visipruner.errors import VisiPrunerError
from visipruner.files import sha256_of, write_json
from visipruner.models import loading as models

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner
    from visipruner.evaluation.datasets import Benchmark
    from visipruner.evaluation.processes import Processes
    from visipruner.evaluation.samples import Sample
    from visipruner.models.loading import LoadedModel

SCHEMA = "visipruner.eval/1"
RESULTS_FILE = "results.json"
_MATCHED_ON = 1  # samples on which budgets are matched
_ANY_DEPTH = 32
EVERY = "all"
# Not methods that one would choose: recordings, parts of others, and what is slower than dense by design.
_NO_CHOICE = {"none", "composed", "schedule", "visipruner-reference"}


@dataclass(frozen=True)
class Job:
    """The arguments of one `visipruner eval`."""

    methods: list[str]
    fixed: list[str]
    configs: list[Path]
    model: str
    data: Path | None
    benchmark: str | None
    out: Path | None
    samples: int | None
    seed: int
    match: str | None
    cuts: list[float]
    share_images: bool
    keep_sets: bool
    max_new_tokens: int
    dtype: str
    attn: str
    device: str
    allow_download: bool
    as_json: bool


def execute(job: Job) -> None:
    """Answers every sample with every method, shows the table and saves it. Raises CliError and its kin."""
    from visipruner.evaluation import as_markdown
    from visipruner.evaluation.processes import launched

    if job.match is not None and not job.cuts:
        raise CliError("--match needs the shares to cut: --cut 0.3 --cut 0.5.")
    if job.cuts and job.match is None:
        raise CliError("--cut needs to know of what: --match flops, tokens or attention.")
    if wrong := [cut for cut in job.cuts if not 0 < cut < 1]:
        raise CliError(f"--cut is a share above 0 and below 1, as --cut 0.5, not {wrong[0]:g}.")
    _check_labels(job)
    processes = launched()
    if processes.count > 1 and job.out is None:
        raise CliError("Several processes need --out DIR, a folder that all of them can reach.")
    models.check_name(job.model)
    task = task_of(job.model, job.data, job.benchmark, None if job.out is None else job.out / "images")
    chosen = task.samples if job.samples is None else task.choose(job.samples, job.seed)
    if job.out is not None:
        saving.prepare_folder(job.out)
    for spec in [*job.methods, *(_named(spec)[1] for spec in job.fixed)]:
        if spec != EVERY:  # a wrong name is told before the model loads
            settings.pruner_for(spec, job.model, _ANY_DEPTH)
    with processes.first_on_each_machine():
        task.prepare(chosen)
        models.prepare(job.model)
    status = Console(stderr=True, quiet=not processes.is_main)
    with status.status(f"Loading {job.model}"):
        loaded = models.load(job.model, job.dtype, job.attn, job.allow_download, job.device)
    methods, left_out = _methods(job, loaded, task, status, processes)
    records = _records(job, loaded, task, chosen, methods, status, processes)
    if processes.is_main:
        document = _document(job, loaded, task, methods, left_out, records, processes.count)
        table = as_markdown(document["rows"])
        if job.out is not None:
            _save(job.out, document, table, status)
        document["submissions"] = submissions.write(task, records, job.out, status)
        if job.out is not None:
            write_json(job.out / RESULTS_FILE, document)  # again, with the submissions: one that fails costs no results
            status.print(f"Results: {job.out / RESULTS_FILE}")
        print(json.dumps(document, indent=2) if job.as_json else table)


def _methods(
    job: Job, loaded: LoadedModel, task: Benchmark, status: Console, processes: Processes
) -> tuple[dict[str, Pruner], dict[str, str]]:
    """Pruners by their names in the table, and why some were left out."""
    from visipruner.pruners.registry import load_pruner

    layers = loaded.model.config.get_text_config().num_hidden_layers
    fixed = {name: settings.pruner_for(spec, job.model, layers) for name, spec in map(_named, job.fixed)}
    fixed |= {str(path): load_pruner(path) for path in job.configs}
    plain = {spec: settings.pruner_for(spec, job.model, layers) for spec in _specs(job)}
    if job.match is None and EVERY not in job.methods:
        return {**fixed, **plain}, {}
    fitting, left_out = _fitting(job, loaded, task, plain, status, processes)
    if not fixed and not fitting:
        raise CliError("No method can be compared with the dense model: all were left out, for the reasons above.")
    return {**fixed, **fitting}, left_out


def _specs(job: Job) -> list[str]:
    """What --method asks for, "all" spelled out."""
    from visipruner.pruners.registry import available

    specs = job.methods or ([] if job.fixed or job.configs else ["visipruner"])
    if EVERY in specs:
        specs = [*(name for name in available() if name not in _NO_CHOICE), *(s for s in specs if s != EVERY)]
    return list(dict.fromkeys(specs))


def _check_labels(job: Job) -> None:
    """Raises CliError where two settings would have one name in the table, so that one of them would be lost."""
    cuts: list[float | None] = [*dict.fromkeys(job.cuts)] or [None]
    labels = Counter(
        [
            *(_named(spec)[0] for spec in dict.fromkeys(job.fixed)),
            *map(str, dict.fromkeys(job.configs)),
            *(_label(spec, cut) for spec in _specs(job) for cut in cuts),
        ]
    )
    label, count = labels.most_common(1)[0]
    if count > 1:
        raise CliError(f"{count} settings have the name {label!r} in the table; give each a name: --fixed LABEL=SPEC.")


def _label(name: str, cut: float | None) -> str:
    return name if cut is None else f"{name} @ {100 * cut:g}%"


def _named(spec: str) -> tuple[str, str]:
    """`label=method:key=value` as label and method; without a label the method is its own."""
    label, equals, method = spec.partition("=")
    if equals and not {":", "+"} & set(label):
        return label.strip(), method.strip()
    return spec, spec


def _fitting(
    job: Job,
    loaded: LoadedModel,
    task: Benchmark,
    plain: dict[str, Pruner],
    status: Console,
    processes: Processes,
) -> tuple[dict[str, Pruner], dict[str, str]]:
    """The methods that run on this model, with matched budgets where that is asked for; and why others do not."""
    from visipruner.cli.ask import prepare
    from visipruner.evaluation import matched, share_cut
    from visipruner.evaluation.folder import key_of
    from visipruner.images import open_image

    samples = task.choose(_MATCHED_ON, job.seed)[:_MATCHED_ON]  # the same however many are asked
    prompts = [prepare(loaded, open_image(sample.image), sample.question) for sample in samples]
    found: dict[str, Pruner] = {}
    left_out: dict[str, str] = {}
    cuts: list[float | None] = [*dict.fromkeys(job.cuts)] or [None]
    asked = {
        "model": job.model,
        "match": job.match,
        "samples": [key_of(sample) for sample in samples],
        "methods": {name: [pruner.name, pruner.settings()] for name, pruner in plain.items()},
    }
    matches = Matches(job.out, asked, processes.is_main)
    every = [(name, pruner, cut) for name, pruner in plain.items() for cut in cuts]
    for name, pruner, cut in with_progress(every, len(every), status, "Trying methods, matching budgets"):
        answer, label = matches.get(name, cut), _label(name, cut)
        if answer is None:
            try:
                if cut is None or job.match is None:
                    share_cut(loaded.model, prompts[0], pruner)
                    answer = pruner
                else:
                    answer = matched(loaded.model, prompts, pruner, job.match, cut)
            except VisiPrunerError as error:
                answer = str(error)
            matches.put(name, cut, answer)
        if isinstance(answer, str):
            left_out[label] = answer
        else:
            found[label] = answer
    for label, reason in left_out.items():
        status.print(f"[yellow]left out: {label}: {reason}[/yellow]")
    return found, left_out


def _records(
    job: Job,
    loaded: LoadedModel,
    task: Benchmark,
    samples: Sequence[Sample],
    methods: dict[str, Pruner],
    status: Console,
    processes: Processes,
) -> list[dict[str, Any]]:
    """One a sample, in their order; complete on the main process."""
    from visipruner.evaluation import evaluate
    from visipruner.evaluation.folder import join, key_of
    from visipruner.models.fingerprint import fingerprint

    running = evaluate(
        loaded.model,
        loaded.processor,
        samples,
        methods,
        max_new_tokens=job.max_new_tokens,
        folder=job.out,
        identity={
            "model": job.model,
            "weights": fingerprint(loaded.model),
            "dtype": loaded.dtype,
            "attention": loaded.attn,
            "data": {"file": task.questions.name, "sha256": sha256_of(task.questions)},
        },
        processes=processes,
        share_images=job.share_images,
        keep_sets=job.keep_sets,
    )
    if processes.count == 1:
        return list(with_progress(running, len(samples), status, "Answering"))
    share = math.ceil(len(samples) / processes.count)
    mine = list(with_progress(running, share, status, f"Answering, process 1 of {processes.count}"))
    with status.status("Waiting for the other processes"):
        processes.wait()
    if job.out is None or not processes.is_main:
        return mine
    done = join(job.out, samples)
    return [done[key_of(sample)] for sample in samples]


def _document(
    job: Job,
    loaded: LoadedModel,
    task: Benchmark,
    methods: dict[str, Pruner],
    left_out: dict[str, str],
    records: list[dict[str, Any]],
    processes: int,
) -> dict[str, Any]:
    import torch

    from visipruner.evaluation import INTERVALS, TEST, summarize

    return {
        "schema": SCHEMA,
        "model": {"name": job.model, "dtype": loaded.dtype, "attention": loaded.attn},
        "data": "the shipped test set" if job.data is None else job.data.name,
        "benchmark": {
            "name": task.name,
            "metric": task.metric,
            "questions": len(task.samples),
            "server": task.server or None,
            "notes": task.notes,
        },
        "samples": len(records),
        "seed": job.seed,
        "match": job.match,
        "share_images": job.share_images,
        "max_new_tokens": job.max_new_tokens,
        "threads": torch.get_num_threads(),
        "processes": processes,
        "versions": {
            "python": python_version(),
            **{name: version(name) for name in ("visipruner", "torch", "transformers", "scipy")},
        },
        "intervals": INTERVALS,
        "test": TEST,
        "methods": {name: {"method": pruner.name, "settings": pruner.settings()} for name, pruner in methods.items()},
        "left_out": left_out,
        "rows": summarize(records, scoring=task),
        "submissions": {},
    }


def _save(out: Path, document: dict[str, Any], table: str, status: Console) -> None:
    from visipruner.files import write_atomic

    write_json(out / RESULTS_FILE, document)
    write_atomic(out / "table.md", lambda part: part.write_text(table + "\n", encoding="utf-8"))
    try:
        from visipruner.evaluation import chart, ranking

        chart.draw(document["rows"], out / "chart.png")
        ranking.draw(document["rows"], out / "ranking.png")
    except ImportError:
        status.print("[yellow]No chart.png: matplotlib is not installed (pip install 'visipruner[report]').[/yellow]")
