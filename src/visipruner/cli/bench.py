"""`visipruner bench`: seconds and bytes of pruned prompts beside what their FLOPs promise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from visipruner.cli import saving
from visipruner.cli.errors import CliError, did_you_mean
from visipruner.files import write_json

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner
    from visipruner.speed.checks import Effort, Outcome
    from visipruner.speed.rounds import Contender
    from visipruner.speed.subject import Subject

SCHEMA = "visipruner.speed/1"
QUESTION = "Describe the image."
_WIDE = 1.25  # highest over lowest time beyond which a reader is warned


@dataclass(frozen=True)
class Job:
    """The arguments of one `visipruner bench`."""

    shape: str | None
    model: str | None
    image: Path | None
    question: str | None
    checks: list[str]
    methods: list[str]
    schedule: str | None
    visual: list[int]
    before: int | None
    after: int | None
    batch: int
    new_tokens: int
    rounds: int | None
    layers: int | None
    tie: bool | None
    dtype: str
    attn: str
    device: str
    allow_download: bool
    warm_up: bool
    out: Path | None
    as_json: bool


def execute(job: Job) -> None:
    """Measures, shows tables and targets, and saves them. Raises CliError, ConfigError or MachineError."""
    from visipruner.speed import machine

    if job.model is None and (job.image is not None or job.question is not None):
        raise CliError("--image and --question are for a real checkpoint; give --model NAME too, or leave them out.")
    if job.out is not None:
        saving.prepare_folder(job.out)
    _check_device(job.device)
    console = Console(stderr=True)
    warnings = [warning for warning in [machine.busy_warning()] if warning is not None]
    _warn(warnings, console)
    document: dict[str, Any] = {"schema": SCHEMA, "machine": machine.describe(), "warnings": list(warnings)}
    if job.model is not None:
        _run_model(job, job.model, document, console)
    elif job.checks:
        _run_checks(job, document, console)
    else:
        _run_shape(job, document, console)
    _warn(document["warnings"][len(warnings) :], console)
    if job.as_json:
        print(json.dumps(document, indent=2))


def _warn(warnings: Sequence[str], console: Console) -> None:
    for warning in warnings:
        console.print(f"[yellow]{warning}[/yellow]")


def _check_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise CliError("--device cuda needs a CUDA build of torch and a GPU that it can see; leave it out for the CPU.")
    if device not in ("cpu", "cuda"):
        raise CliError(f"--device is cpu or cuda, and not {device!r}.")


# ---- checks ----------------------------------------------------------------------------------------------------------


def _run_checks(job: Job, document: dict[str, Any], console: Console) -> None:
    from visipruner.speed.checks import CHECKS, Effort

    if job.methods or job.batch > 1 or any(value is not None for value in (job.schedule, job.before, job.after)):
        raise CliError(
            "--check brings its own methods, schedule and prompts; leave out --method, --schedule, --before, --after "
            "and --batch."
        )
    names = list(CHECKS) if "all" in job.checks else job.checks
    for name in names:
        if name not in CHECKS:
            raise CliError(
                f"There is no check {name!r}; the checks are {', '.join(CHECKS)}, all.{did_you_mean(name, CHECKS)}"
            )
    effort = Effort(
        shape=job.shape,
        layers=job.layers,
        visual=tuple(job.visual) or None,
        rounds=job.rounds,
        dtype=job.dtype,
        tie=job.tie,
        device=job.device,
        attn=job.attn,
    )
    document["checks"] = []
    for name in names:
        outcome = _one_check(name, effort, console)
        document["checks"].append(outcome.to_dict())
        if not job.as_json:
            _show_check(outcome)
        _save(job, document, name, outcome.points)


def _one_check(name: str, effort: Effort, console: Console) -> Outcome:
    from visipruner.speed.checks import CHECKS

    with console.status(f"{name}: building the model") as status:
        return CHECKS[name](effort, lambda what: status.update(f"{name}: {what}"))


def _show_check(outcome: Outcome) -> None:
    from visipruner.speed.present import table

    model = outcome.model
    notes = "".join(f"; {note}" for note in model["notes"])
    print(f"\n## {outcome.name}: {model['name']}, {model['dtype']}{notes}\n")
    for point in outcome.points:
        if point["visual"]:
            print(f"{point['visual']} visual tokens, {point['text_before']} + {point['text_after']} of text\n")
        print(table(point), end="\n\n")
    for target in outcome.targets:
        print(target)


# ---- any shape -------------------------------------------------------------------------------------------------------


def _run_shape(job: Job, document: dict[str, Any], console: Console) -> None:
    from visipruner.speed.present import table
    from visipruner.speed.subject import from_shape

    sizes = job.visual or [576]
    before, after = _text_around(job)
    rows = job.batch * (max(sizes) + before + after)
    with console.status("Building the model"):
        found = from_shape(
            job.shape or "llava-1.5-7b",
            dtype=job.dtype,
            attn=job.attn,
            layers=job.layers,
            tie=job.tie,
            device=job.device,
            rows=rows,
        )
        pruners = _pruners(job, found)
    document["model"], document["points"] = found.describe(), []
    if not job.as_json:
        print(f"## {found.name}, {document['model']['dtype']}{''.join(f'; {note}' for note in found.notes)}\n")
    for visual in sizes:
        point = _point(job, found, pruners, visual, console)
        document["points"].append(point)
        document["warnings"] += _wide(point)
        if not job.as_json:
            print(f"{visual} visual tokens, {before} + {after} of text, {job.batch} at a time")
            if point["tower_seconds"] is not None:
                print(f"vision tower alone: {point['tower_seconds']['median']:.2f} s")
            print("\n" + table(point), end="\n\n")
        _save(job, document, "results", document["points"])


def _text_around(job: Job) -> tuple[int, int]:
    """Text tokens before and after the visual ones; unless they are given, about those of LLaVA-1.5's prompts."""
    return 35 if job.before is None else job.before, 13 if job.after is None else job.after


def _pruners(job: Job, found: Subject) -> dict[str, Pruner]:
    """What is measured beside dense. VisiPruner runs on a schedule, as nothing triggers in random weights."""
    from visipruner.pruners.registry import make_from_spec, method_class
    from visipruner.pruners.visipruner import VisiPruner
    from visipruner.speed.schedule import Schedule

    fixed = Schedule.for_depth(found.depth) if job.schedule is None else Schedule.parse(job.schedule)
    ours = VisiPruner.for_depth(found.depth)
    chosen: dict[str, Pruner] = {}
    for spec in job.methods:
        chosen[spec] = make_from_spec(spec) if set(spec) & set(":+") else method_class(spec).for_depth(found.depth)
    if not chosen:
        chosen = {
            "visipruner:shallow_end=0": replace(ours, shallow_end=0),
            "visipruner": ours,
            "visipruner:shallow_visual=ffn": replace(ours, shallow_visual="ffn"),
        }
    for spec, pruner in chosen.items():
        if type(pruner) is VisiPruner:
            chosen[spec] = fixed.applied(pruner, found.depth)
        chosen[spec].check(found.depth)
        if pruner.vision_layers(24):
            raise CliError(f"{spec} looks at the vision tower, which random embeddings did not pass; leave it out.")
    return chosen


# ---- a real checkpoint -----------------------------------------------------------------------------------------------


def _run_model(job: Job, name: str, document: dict[str, Any], console: Console) -> None:
    """One chat prompt about a picture; methods find their own layers unless a schedule is given."""
    from visipruner.images import open_image
    from visipruner.models import loading as models
    from visipruner.models import packaged
    from visipruner.speed.present import table
    from visipruner.speed.prompt import about_picture, text_only
    from visipruner.speed.rounds import DENSE, TEXT, Contender, rows, take_turns
    from visipruner.speed.subject import Subject

    shaped = (job.shape, job.layers, job.tie, job.before, job.after)
    if job.checks or job.visual or job.batch > 1 or any(value is not None for value in shaped):
        raise CliError(
            "--model brings its own size and prompt; leave out --shape, --check, --visual, --before, --after, --batch, "
            "--layers and --tie-layers."
        )
    models.check_name(name)
    photo = job.image or packaged.picture(name)
    if photo is None:
        raise CliError("Give the picture to ask about with --image FILE; no installed package brings one.")
    picture = open_image(photo)  # a bad one is told before the model loads
    models.prepare(name)
    with console.status(f"Loading {name}"):
        loaded = models.load(name, job.dtype, job.attn, job.allow_download, job.device)
    found = Subject(name, loaded.model, tied=False, notes=["prefill includes the vision tower, FLOPs do not"])
    pruners = _pruners_of_model(job, found)
    prompt = about_picture(loaded.model, loaded.processor, picture, job.question or QUESTION)
    text = prompt.width - prompt.visual[0]
    contenders = [Contender(DENSE, prompt)]
    contenders += [Contender(label, prompt, pruner) for label, pruner in pruners.items()]
    contenders.append(Contender(TEXT, text_only(loaded.model, text)))
    with console.status("") as status:
        warm = contenders if job.warm_up else contenders[-1:]
        runs, counted = take_turns(
            loaded.model, contenders, job.rounds or 3, job.new_tokens, warm=warm, on_run=status.update
        )
    point = {"text_before": text, "visual": prompt.visual[0], "text_after": 0, "rows": rows(contenders, runs, counted)}
    document["model"], document["points"] = found.describe(), [point]
    document["warnings"] += _wide(point)
    if not job.as_json:
        print(f"## {found.name}, {document['model']['dtype']}; {found.notes[0]}\n")
        print(f"{prompt.visual[0]} visual tokens, {text} of text\n\n" + table(point), end="\n\n")
    _save(job, document, "results", [point])


def _pruners_of_model(job: Job, found: Subject) -> dict[str, Pruner]:
    from visipruner.cli import settings
    from visipruner.pruners.visipruner import VisiPruner
    from visipruner.speed.schedule import Schedule

    chosen = {spec: settings.pruner_for(spec, found.name, found.depth) for spec in job.methods or ["visipruner"]}
    for spec, pruner in chosen.items():
        pruner.check(found.depth)
        if job.schedule is not None and type(pruner) is VisiPruner:
            chosen[spec] = Schedule.parse(job.schedule).applied(pruner, found.depth)
    return chosen


def _point(job: Job, found: Subject, pruners: dict[str, Pruner], visual: int, console: Console) -> dict[str, Any]:
    from visipruner.speed.prompt import Rows, embedded, text_only
    from visipruner.speed.rounds import DENSE, TEXT, Contender, rows, spread, take_turns
    from visipruner.speed.tower import tower_seconds

    before, after = _text_around(job)
    shape = Rows(before, visual, after)
    prompt = embedded(found.model, [shape] * job.batch)
    contenders = [Contender(DENSE, prompt)]
    contenders += [Contender(name, prompt, pruner) for name, pruner in pruners.items()]
    contenders.append(Contender(TEXT, text_only(found.model, shape.before + shape.after, job.batch)))
    warm: Sequence[Contender] = contenders if job.warm_up else contenders[-1:]
    count = job.rounds or 3
    with console.status("") as status:
        runs, counted = take_turns(
            found.model,
            contenders,
            count,
            job.new_tokens,
            warm=warm,
            on_run=lambda what: status.update(f"{visual} visual tokens: {what}"),
        )
        status.update("the vision tower")
        tower = spread([tower_seconds(found.model, visual * job.batch) for _ in range(count)])
    return {
        "text_before": before,
        "visual": visual,
        "text_after": after,
        "batch": job.batch,
        "new_tokens": job.new_tokens,
        "tower_seconds": tower,
        "rows": rows(contenders, runs, counted),
    }


def _wide(point: dict[str, Any]) -> list[str]:
    return [
        f"{row['name']} at {point['visual']} visual tokens: prefill times differ by a factor of "
        f"{row['prefill']['high'] / row['prefill']['low']:.2f}; measure on a quieter machine or with more --rounds."
        for row in point["rows"]
        if row["prefill"]["high"] > _WIDE * row["prefill"]["low"]
    ]


def _save(job: Job, document: dict[str, Any], name: str, points: Sequence[dict[str, Any]]) -> None:
    """After every step, so that an interrupted benchmark keeps what it has."""
    if job.out is None:
        return
    from visipruner.files import write_atomic
    from visipruner.speed.present import draw, table

    told = {**document, "checks": document["checks"][-1:]} if job.checks else document
    write_json(job.out / f"{name}.json", told)
    if not points:  # a check of targets alone
        return
    text = "\n\n".join(table(point) for point in points) + "\n"
    write_atomic(job.out / f"{name}.md", lambda part: part.write_text(text, encoding="utf-8"))
    if points[-1]["visual"]:
        draw(points, job.out / f"{name}.png")
