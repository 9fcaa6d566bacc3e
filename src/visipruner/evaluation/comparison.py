"""A whole comparison in one call: methods on a model over data, to a table and a folder. `visipruner eval` is this."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.evaluation import pictures
from visipruner.evaluation.certainty import INTERVALS, TEST
from visipruner.evaluation.contenders import Wanted, contenders
from visipruner.evaluation.datasets import Benchmark, is_package, open_data
from visipruner.evaluation.folder import Processes, Record, join, key_of, launched
from visipruner.evaluation.rows import as_markdown, summarize
from visipruner.evaluation.runner import evaluate
from visipruner.evaluation.samples import Sample, check_questions
from visipruner.files import held, prepare_folder, sha256_of, write_atomic, write_json
from visipruner.models import loading as models
from visipruner.models import packaged
from visipruner.models.fingerprint import fingerprint
from visipruner.models.loading import LoadedModel
from visipruner.progress import SILENT, Progress
from visipruner.specs import DEFAULT, Chosen

SCHEMA = "visipruner.eval/1"
RESULTS_FILE = "results.json"
_MATCHED_ON = 1  # samples on which budgets are matched


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        document: results.json, described in docs/evaluation.md. records: one a sample, as `evaluate` yields them.
    """

    document: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a method, the dense model first, as `summarize` makes them."""
        rows: list[dict[str, Any]] = self.document["rows"]
        return rows

    @property
    def table(self) -> str:
        """The rows as Markdown."""
        return as_markdown(self.rows)


def compare(
    model: str | LoadedModel,
    methods: Sequence[str] = (),
    *,
    fixed: Mapping[str, str | Path | Pruner] | None = None,
    data: str | Path | None = None,
    benchmark: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    match: str | None = None,
    cuts: Sequence[float] = (),
    share_images: bool = False,
    keep_sets: bool = False,
    batch_size: int = 1,
    max_new_tokens: int = 32,
    out: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> Compared | None:
    """Answers the same samples with the dense model and with every method.

    Args:
        model: a name, as `models.load` takes it, or what that returned.
        methods: specs, see `specs`; "all" is every method that runs; by default "visipruner", none beside `fixed`.
        fixed: by names in the table specs, paths of saved pruner.json, or pruners, taken as they are.
        data: a JSONL file, a benchmark's folder or question file; None for what the model brings along.
        benchmark: read `data` as this one. samples: how many, spread over images by `seed`; None for all.
        match, cuts: give all `methods` equal budgets: shares (0 to 1) to cut of "flops", "tokens" or "attention".
        share_images, keep_sets, batch_size, max_new_tokens: as `evaluate` has them.
        out: a folder for results.json, table.md, charts and samples.jsonl; an interrupted run goes on from it.
        load: of a named model, `models.load`'s other arguments.

    Under `accelerate launch` or `torchrun` each process answers its share; None for all but the main one. Raises
    VisiPrunerError with a sentence for the user.
    """
    name = model if isinstance(model, str) else model.name
    folder, processes = None if out is None else Path(out), launched()
    if processes.count > 1 and folder is None:
        raise ConfigError("Several processes need --out DIR, a folder that all of them can reach.")
    wanted = Wanted(methods or ([] if fixed else [DEFAULT]), fixed or {}, match, cuts)
    if isinstance(model, str):
        models.check_name(model)
    task = _task(name, data, benchmark, folder)
    chosen = task.samples if samples is None else task.choose(samples, seed)
    if folder is not None:
        prepare_folder(folder)
    wanted.check(name)
    answering = {
        "max_new_tokens": max_new_tokens,
        "share_images": share_images,
        "keep_sets": keep_sets,
        "batch_size": batch_size,
    }
    asked = _Asked(task, chosen, seed, wanted, answering, folder, processes, progress, data)
    with held(folder if processes.is_main else None):
        return asked.compared(asked.loaded(model, load or {}))


@dataclass(frozen=True)
class _Asked:
    task: Benchmark
    samples: Sequence[Sample]
    seed: int
    wanted: Wanted
    answering: dict[str, Any]
    out: Path | None
    processes: Processes
    progress: Progress
    data: str | Path | None

    def loaded(self, model: str | LoadedModel, load: Mapping[str, Any]) -> LoadedModel:
        with self.processes.first_on_each_machine():
            self.task.prepare(self.samples)
            if isinstance(model, str):
                models.prepare(model)
        if not isinstance(model, str):
            return model
        with self.progress.busy(f"Loading {model}"):
            return models.load(model, **load)

    def compared(self, loaded: LoadedModel) -> Compared | None:
        check_questions(self.samples, loaded.processor)
        matched_on = self.task.choose(_MATCHED_ON, self.seed)[:_MATCHED_ON]  # the same however many are asked
        found, left_out = contenders(self.wanted, loaded, matched_on, self.out, self.processes.is_main, self.progress)
        records = self._records(loaded, {name: one.pruner for name, one in found.items()})
        if not self.processes.is_main:
            return None
        document = self._document(loaded, found, left_out, records)
        compared = Compared(document, records)
        for note in self.task.notes:
            self.progress.note(f"{self.task.title}: {note}")
        if self.out is not None:
            _save(self.out, compared, self.progress)
        document["submissions"] = _write_submissions(self.task, records, self.out, self.progress)
        if self.out is not None:
            write_json(self.out / RESULTS_FILE, document)  # again: a submission that fails costs no results
        return compared

    def _records(self, loaded: LoadedModel, methods: Mapping[str, Pruner]) -> list[dict[str, Any]]:
        """One a sample, in their order; complete on the main process."""
        running = evaluate(
            loaded.model,
            loaded.processor,
            self.samples,
            methods,
            folder=self.out,
            identity={
                "model": loaded.name,
                "weights": fingerprint(loaded.model),
                "dtype": loaded.dtype,
                "attention": loaded.attn,
                "data": {"file": self.task.questions.name, "sha256": sha256_of(self.task.questions)},
            },
            processes=self.processes,
            **self.answering,
        )
        count = self.processes.count
        if count == 1:
            return list(self.progress.over(running, len(self.samples), "Answering"))
        share = math.ceil(len(self.samples) / count)
        mine = list(self.progress.over(running, share, f"Answering, process 1 of {count}"))
        with self.progress.busy("Waiting for the other processes"):
            self.processes.wait()
        if self.out is None or not self.processes.is_main:
            return mine
        done = join(self.out, self.samples)
        return [done[key_of(sample)] for sample in self.samples]

    def _document(
        self,
        loaded: LoadedModel,
        methods: Mapping[str, Chosen],
        left_out: Mapping[str, str],
        records: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:
        task = self.task
        return {
            "schema": SCHEMA,
            "model": {"name": loaded.name, "dtype": loaded.dtype, "attention": loaded.attn},
            "data": "the shipped test set" if self.data is None else Path(self.data).name,
            "benchmark": {
                "name": task.name,
                "metric": task.metric,
                "questions": len(task.samples),
                "server": task.server or None,
                "notes": task.notes,
            },
            "samples": len(records),
            "seed": self.seed,
            "match": self.wanted.match,
            "share_images": self.answering["share_images"],
            "batch_size": self.answering["batch_size"],
            "max_new_tokens": self.answering["max_new_tokens"],
            "threads": torch.get_num_threads(),
            "processes": self.processes.count,
            "versions": {
                "python": python_version(),
                **{name: version(name) for name in ("visipruner", "torch", "transformers", "scipy")},
            },
            "intervals": INTERVALS,
            "test": TEST,
            "methods": {name: one.describe() for name, one in methods.items()},
            "left_out": dict(left_out),
            "rows": summarize(records, scoring=task),
            "submissions": {},
        }


def _task(model: str, data: str | Path | None, benchmark: str | None, out: Path | None) -> Benchmark:
    """`data`, or what the model brings along. Raises ConfigError where there is neither."""
    if data is None and benchmark is not None:
        data = benchmark
        if not is_package(Path(data)):
            raise ConfigError("--benchmark needs to know where its files are: --data FOLDER.")
    return open_data(
        packaged.data_of(model) if data is None else Path(data), benchmark, None if out is None else out / "images"
    )


def draw_results(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes table.md, and where matplotlib is installed chart.png and ranking.png. Raises ImportError where not."""
    text = as_markdown(rows) + "\n"
    write_atomic(out / "table.md", lambda part: part.write_text(text, encoding="utf-8"))
    pictures.draw_budgets(rows, out / "chart.png")
    pictures.draw_ranking(rows, out / "ranking.png")


def _save(out: Path, compared: Compared, progress: Progress) -> None:
    write_json(out / RESULTS_FILE, compared.document)
    try:
        draw_results(out, compared.rows)
    except ImportError:
        progress.note("No chart.png: matplotlib is not installed (pip install 'visipruner[report]').")


def _write_submissions(
    task: Benchmark, records: Sequence[Record], out: Path | None, progress: Progress
) -> dict[str, str]:
    """One file a method in `out`/submission, for the server that scores it; by method its path relative to `out`.

    Notes what the reader must do.
    """
    if not task.server:
        return {}
    if out is None:
        progress.note(f"{task.title} is scored by {task.server}; give --out DIR to get the file for it.")
        return {}
    written: dict[str, str] = {}
    for number, name in enumerate(records[0]["given"]):
        stem = out / "submission" / f"{task.name}-{number}-{re.sub(r'[^A-Za-z0-9_.]+', '-', name).strip('-')[:80]}"
        path = task.submission(records, name, stem)
        if path is not None:
            written[name] = str(path.relative_to(out))
    progress.note(f"{task.title} is scored by {task.server}: submit the files in {out / 'submission'}.")
    return written
