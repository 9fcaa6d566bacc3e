"""Measurements in one call each: a shape with random weights, a real checkpoint, the promises of docs/performance.md.
`visipruner bench` is these three."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visipruner import specs
from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.images import open_image
from visipruner.models import loading as models
from visipruner.models import packaged
from visipruner.models.loading import LoadedModel
from visipruner.progress import SILENT, Progress
from visipruner.pruners.visipruner import VisiPruner
from visipruner.specs import DEFAULT
from visipruner.speed.checks import CHECKS, ON_A_GPU, CheckResult, Effort
from visipruner.speed.measure import DENSE, TEXT, Contender, rows, spread, take_turns, tower_seconds
from visipruner.speed.prompt import Prompt, Rows, about_picture, embedded, text_only
from visipruner.speed.report import Report
from visipruner.speed.scheduled import Schedule
from visipruner.speed.subject import Subject, from_shape
from visipruner.words import did_you_mean

QUESTION = "Describe the image."
Methods = Sequence[str] | Mapping[str, str | Pruner]
_VISION_LAYERS = 24  # any number: whether a method looks at a vision tower at all


def bench_shape(
    shape: str = "llava-1.5-7b",
    methods: Methods = (),
    *,
    schedule: str | None = None,
    visual: Sequence[int] = (576,),
    before: int = 35,
    after: int = 13,
    batch: int = 1,
    new_tokens: int = 8,
    rounds: int = 3,
    layers: int | None = None,
    tie: bool | None = None,
    dtype: str = "auto",
    attn: str = "sdpa",
    device: str = "cpu",
    warm_up: bool = True,
    out: str | Path | None = None,
    each: Callable[[dict[str, Any]], object] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures methods beside the dense model at a real shape, with random weights.

    Args:
        shape: one of `shapes.names()` or a config.json. methods: specs, or by name specs and pruners; without any
            VisiPruner in three forms. VisiPruner runs on `schedule` (`filter=14,keep=10,exit=20`; by default these
            layers of 32), as nothing triggers in random weights.
        visual: numbers of visual tokens, one point each; before, after: text tokens around them.
        batch: prompts at a time. new_tokens: to generate. rounds: how often everything runs, in turns.
        layers, tie, dtype, attn, device: as `subject.from_shape` has them.
        warm_up: run everything once before, uncounted; else only the text.
        out: a folder for results.json, tables and a chart. each: called after every point with what there is so far.

    Returns what results.json holds. Raises VisiPrunerError with a sentence for the user.
    """
    check_device(device)
    for spec in _named(methods).values():
        specs.resolve(spec, shape, specs.ANY_DEPTH)  # a wrong name is told before the model is built
    report = Report(out, progress)
    around = [Rows(before, count, after) for count in visual]
    with progress.busy("Building the model"):
        most = batch * max(one.total for one in around)
        found = from_shape(shape, dtype=dtype, attn=attn, layers=layers, tie=tie, device=device, rows=most)
        pruners = _on_schedule(methods, schedule, found)
    report.document["model"] = found.describe()
    for one in around:
        report.add(_Rounds(rounds, new_tokens, warm_up, progress).at_size(found.model, pruners, one, batch))
        if each is not None:
            each(report.document)
    return report.document


def bench_model(
    model: str | LoadedModel,
    methods: Methods = (DEFAULT,),
    *,
    image: str | Path | Image.Image | None = None,
    question: str = QUESTION,
    schedule: str | None = None,
    new_tokens: int = 8,
    rounds: int = 3,
    warm_up: bool = True,
    out: str | Path | None = None,
    load: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures methods beside the dense model on a real checkpoint, asked `question` about `image`.

    Args:
        model: a name, as `models.load` takes it, or what that returned; `load`: of a named one its other arguments.
        image: a file or a picture; None for a photograph that ships. schedule: as `bench_shape` has it, for VisiPruner,
            which else finds its own layers. The rest: as `bench_shape` has them.

    Returns what results.json holds, with one point. Raises VisiPrunerError with a sentence for the user.
    """
    report = Report(out, progress)
    if isinstance(model, str):
        models.check_name(model)
    picture = image if isinstance(image, Image.Image) else open_image(_photo(image))  # told before the model loads
    loaded = models.ready(model, load, progress)
    found = Subject(loaded.name, loaded.model, tied=False, notes=["prefill includes the vision tower, FLOPs do not"])
    pruners = {name: specs.resolve(spec, found.name, found.depth).pruner for name, spec in _named(methods).items()}
    for name, pruner in pruners.items():
        pruner.check(found.depth)
        if schedule is not None and type(pruner) is VisiPruner:
            pruners[name] = Schedule.parse(schedule).applied(pruner, found.depth)
    prompt = about_picture(loaded.model, loaded.processor, picture, question)
    text = prompt.width - prompt.visual[0]
    effort = _Rounds(rounds, new_tokens, warm_up, progress)
    measured = effort.measured(loaded.model, pruners, prompt, text_only(loaded.model, text))
    report.document["model"] = found.describe()
    report.add({"text_before": text, "visual": prompt.visual[0], "text_after": 0, "rows": measured})
    return report.document


def bench_checks(
    names: Sequence[str],
    effort: Effort | None = None,
    *,
    out: str | Path | None = None,
    each: Callable[[CheckResult], object] | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measures promises of docs/performance.md and says of each target whether it is met.

    Args:
        names: of `checks.CHECKS`; "all" is all of them; or "gpu", where there is one. effort: how, where not as a
            check was made for.
        out: a folder for one JSON file, table and chart a check. each: called with every result as it comes.

    Raises VisiPrunerError with a sentence for the user.
    """
    known = {**CHECKS, **ON_A_GPU}
    for name in names:
        if name not in (*known, "all"):
            raise ConfigError(
                f"There is no check {name!r}; the checks are {', '.join(known)}, all.{did_you_mean(name, known)}"
            )
    effort = effort or Effort()
    check_device(effort.device)
    report = Report(out, progress)
    for name in CHECKS if "all" in names else names:

        def tell(what: str, name: str = name) -> None:
            progress.update(f"{name}: {what}")

        with progress.busy(f"{name}: building the model"):
            result = known[name](effort, tell)
        report.add_check(result)
        if each is not None:
            each(result)
    return report.document


def check_device(device: str) -> None:
    """Raises ConfigError for what cannot be measured on."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda needs a CUDA build of torch and a GPU that it can see; leave it out for the CPU."
        )
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device is cpu or cuda, and not {device!r}.")


def _photo(image: str | Path | None) -> Path:
    found = packaged.picture("") if image is None else Path(image)
    if found is None:
        raise ConfigError("Give a picture to ask about: --image FILE.")
    return found


def _named(methods: Methods) -> Mapping[str, str | Pruner]:
    return methods if isinstance(methods, Mapping) else {spec: spec for spec in methods}


def _on_schedule(methods: Methods, schedule: str | None, found: Subject) -> dict[str, Pruner]:
    """What is measured beside dense, VisiPruner on a schedule."""
    fixed = Schedule.for_depth(found.depth) if schedule is None else Schedule.parse(schedule)
    chosen = {name: specs.resolve(spec, found.name, found.depth).pruner for name, spec in _named(methods).items()}
    if not chosen:
        ours = VisiPruner.for_depth(found.depth)
        chosen = {
            "visipruner:shallow_end=0": replace(ours, shallow_end=0),
            "visipruner": ours,
            "visipruner:shallow_visual=ffn": replace(ours, shallow_visual="ffn"),
        }
    for name, pruner in chosen.items():
        if type(pruner) is VisiPruner:
            chosen[name] = fixed.applied(pruner, found.depth)
        chosen[name].check(found.depth)
        if pruner.vision_layers(_VISION_LAYERS):
            raise ConfigError(f"{name} looks at the vision tower, which random embeddings did not pass; leave it out.")
    return chosen


@dataclass(frozen=True)
class _Rounds:
    count: int
    new_tokens: int
    warm_up: bool
    progress: Progress

    def at_size(self, model: Any, pruners: Mapping[str, Pruner], size: Rows, batch: int) -> dict[str, Any]:
        text = text_only(model, size.before + size.after, batch)
        what = f"{size.visual} visual tokens: "
        measured = self.measured(model, pruners, embedded(model, [size] * batch), text, what)
        with self.progress.busy("the vision tower"):
            tower = spread([tower_seconds(model, size.visual * batch) for _ in range(self.count)])
        told = {"batch": batch, "new_tokens": self.new_tokens, "tower_seconds": tower, "rows": measured}
        return {**size.to_dict(), **told}

    def measured(
        self, model: Any, pruners: Mapping[str, Pruner], prompt: Prompt, text: Prompt, what: str = ""
    ) -> list[dict[str, Any]]:
        """Dense first, the text alone last."""
        methods = [Contender(name, prompt, pruner) for name, pruner in pruners.items()]
        contenders = [Contender(DENSE, prompt), *methods, Contender(TEXT, text)]
        warm = contenders if self.warm_up else contenders[-1:]

        def tell(step: str) -> None:
            self.progress.update(what + step)

        with self.progress.busy(what):
            runs, counted = take_turns(model, contenders, self.count, self.new_tokens, warm=warm, on_run=tell)
        return rows(contenders, runs, counted)
