"""The promises of docs/performance.md, each measured by one check of `visipruner bench --check`, with its targets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from visipruner.accounting import dense_decode_macs
from visipruner.errors import ConfigError, VisiPrunerError
from visipruner.pruners.none import NoPruning
from visipruner.pruners.visipruner import VisiPruner
from visipruner.speed import gpu as on_gpu
from visipruner.speed import host_work, subject
from visipruner.speed.measure import DENSE, TEXT, Contender, Run, rows, run_once, run_shared, take_turns
from visipruner.speed.prompt import Rows, asked, embedded, text_only
from visipruner.speed.scheduled import Schedule, Scheduled
from visipruner.speed.subject import Subject

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Target:
    """One promise: `value` must be at least (or at most) `bound`."""

    what: str
    value: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'met   ' if self.met else 'MISSED'}  {self.what}: {self.value:.4g} (target {sign} {self.bound:.4g})"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class CheckResult:
    """What a check found: targets, measured points for tables, and the model they were measured on."""

    name: str
    model: dict[str, Any]
    targets: list[Target]
    points: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        told = [target.to_dict() for target in self.targets]
        return {"check": self.name, "model": self.model, "targets": told, "points": self.points}


@dataclass(frozen=True)
class Effort:
    """How a check is run; None means as the check was made for.

    Attributes:
        shape, layers, visual, rounds: other than the check's own, for a quick try or a larger machine.
    """

    shape: str | None = None
    layers: int | None = None
    visual: tuple[int, ...] | None = None
    rounds: int | None = None
    dtype: str = "auto"
    tie: bool | None = None
    device: str = "cpu"
    attn: str = "sdpa"

    def subject(self, shape: str, rows: int = 624) -> Subject:
        given = {name: getattr(self, name) for name in ("dtype", "attn", "layers", "tie", "device")}
        return subject.from_shape(self.shape or shape, rows=rows, **given)

    def sizes(self, *own: int) -> tuple[int, ...]:
        return self.visual or own


def prefill(effort: Effort, tell: Progress) -> CheckResult:
    """Prefill as fast as its FLOPs, at LLaVA-1.5-7B's shape; peak memory; the cost of selecting."""
    found = effort.subject("llava-1.5-7b")
    depth, size = found.depth, Rows(visual=effort.sizes(576)[0])
    fixed = Schedule.for_depth(depth)
    # The paper's mean: 7 shallow layers, all tokens in 14.8 layers, 10.3 of them up to layer 23.9.
    mean = replace(fixed, exit=min(depth - 1, round(24 * depth / 32)))
    ours = replace(VisiPruner(), shallow_end=min(round(7 * depth / 32), fixed.filter - 1))
    prompt = embedded(found.model, [size])
    contenders = [
        Contender(DENSE, prompt),
        Contender("middle and deep stage", prompt, fixed.applied(replace(ours, shallow_end=0), depth)),
        Contender("all stages", prompt, mean.applied(ours, depth)),
        Contender("all stages, shallow ffn", prompt, mean.applied(replace(ours, shallow_visual="ffn"), depth)),
        Contender("all stages, shallow late", prompt, mean.applied(replace(ours, shallow_visual="late"), depth)),
        Contender(TEXT, text_only(found.model, size.before + size.after)),
    ]
    _, table = _turns(found, contenders, effort.rounds or 3, 4, tell)
    dense, two, three, ffn, late = table[:5]
    targets = [
        Target(f"{row['name'].replace('shallow ', '')}: speed-up of prefill / FLOP ratio", row["of_limit"], bound)
        for row, bound in ((two, 0.97), (three, 0.95), (ffn, 0.95), (late, 0.95))
    ]
    targets += [
        Target("all stages: cut of the FLOPs that the image adds", three["image_flops_cut"], 0.539),
        Target("all stages, ffn: cut of the FLOPs that the image adds", ffn["image_flops_cut"], 0.60),
        _at_most("all stages: keys and values held / dense", three["kv_bytes"] / dense["kv_bytes"], 1.0),
    ]
    for row in (two, three, ffn, late):
        if row["selection_share"] is not None:
            share = row["selection_share"] + row["bookkeeping_share"]
            targets.append(_at_most(f"{row['name']}: selection and bookkeeping / prefill", share, 0.01))
        if row["peak_bytes"] is not None:
            ratio = row["peak_bytes"]["median"] / dense["peak_bytes"]["median"]
            targets.append(_at_most(f"{row['name']}: peak memory / dense", ratio, 1.0))
    return CheckResult("prefill", found.describe(), targets, [_point(size, table)])


def overhead(effort: Effort, tell: Progress) -> CheckResult:
    """A text-only prompt with a pruner attached costs what it costs without."""
    found = effort.subject("llava-1.5-7b")
    prompt = text_only(found.model, 48)
    contenders = [Contender(DENSE, prompt), Contender("attached", prompt, _scheduled(found))]
    _, table = _turns(found, contenders, effort.rounds or 6, 1, tell, contenders)
    share = table[1]["bookkeeping_share"]
    if share is not None:
        target = _at_most("text only: the engine's own time / prefill", share, 0.005)
    else:
        slower = 1 / table[1]["speedup"]["median"] - 1
        target = _at_most("text only: prefill attached / plain - 1", slower, 0.005)
    return CheckResult("overhead", found.describe(), [target], [_point(Rows(48, 0, 0), table)])


def scaling(effort: Effort, tell: Progress) -> CheckResult:
    """576, 2,304 and 9,216 visual tokens: seconds, memory, and decoding in proportion to the keys that are gone."""
    sizes = effort.sizes(576, 2304, 9216)
    found = effort.subject("llava-onevision-0.5b", rows=max(sizes) + 48)
    pruner = _scheduled(found)
    weights = dense_decode_macs(found.shape, 0).total * found.model.dtype.itemsize  # every weight is read once a token
    targets, points = [], []
    for visual in sizes:
        size = Rows(visual=visual)
        prompt = embedded(found.model, [size])
        contenders = [Contender(DENSE, prompt), Contender("all stages", prompt, pruner)]
        contenders.append(Contender(TEXT, text_only(found.model, size.before + size.after)))

        def say(what: str, visual: int = visual) -> None:
            tell(f"{visual} visual tokens: {what}")

        _, table = _turns(found, contenders, effort.rounds or 2, 16, say)
        points.append(_point(size, table))
        dense, ours = table[:2]
        promised = (weights + dense["kv_bytes"]) / (weights + ours["kv_bytes"])
        faster = ours["decode_speedup"]["median"]
        targets += [
            Target(f"{visual}: speed-up of prefill / FLOP ratio", ours["of_limit"], 0.95),
            Target(f"{visual}: speed-up of decoding", faster, 0.99),
            Target(f"{visual}: speed-up of decoding / ratio of bytes read", faster / promised, 0.95),
        ]
    return CheckResult("scaling", found.describe(), targets, points)


def batch(effort: Effort, tell: Progress) -> CheckResult:
    """Eight unlike examples cost what they cost alone: none pays for another's padding."""
    base = effort.sizes(576)[0]
    sizes = [Rows(20 + 5 * number, base, 10 + 4 * number) for number in range(8)]
    found = effort.subject("llava-onevision-0.5b", rows=sum(size.total for size in sizes))
    pruner, together = _scheduled(found), embedded(found.model, sizes)
    singles = [
        Contender(f"example {number}", embedded(found.model, [size], number), pruner)
        for number, size in enumerate(sizes)
    ]
    contenders = [Contender(DENSE, together), Contender("batch of 8", together, pruner), *singles]
    runs, table = _turns(found, contenders, effort.rounds or 2, 1, tell, singles[:1])
    alone = [sum(runs[single.name][number].prefill for single in singles) for number in range(len(runs[DENSE]))]
    paid = statistics.median(run.prefill / single for run, single in zip(runs["batch of 8"], alone, strict=True))
    targets = [
        _at_most("batch of 8 / sum of the single runs", paid, 1.05),
        Target("batch of 8: speed-up of prefill / FLOP ratio", table[1]["of_limit"], 0.90),
    ]
    return CheckResult("batch", found.describe(), targets, [_point(sizes[0], table[:2])])


def questions(effort: Effort, tell: Progress) -> CheckResult:
    """Eight questions about one image under `image_cache()` cost one image and eight prompts of text."""
    base = effort.sizes(576)[0]
    found = effort.subject("llava-onevision-0.5b")
    prompts = asked(found.model, [Rows(35, base, 8 + 2 * number) for number in range(8)])
    texts = [text_only(found.model, prompt.width - base) for prompt in prompts]
    targets = []
    for name, alone, method in (("dense", None, NoPruning()), ("all stages", pruner := _scheduled(found), pruner)):
        ratios, saved = [], []
        for number in range(effort.rounds or 2):
            tell(f"{name}, round {number + 1}")
            plain = [run_once(found.model, prompt, alone, 4) for prompt in prompts]
            text = sum(run_once(found.model, prompt, None, 1).prefill for prompt in texts)
            shared = run_shared(found.model, prompts, method, 4)
            if [run.tokens for run in plain] != [run.tokens for run in shared]:
                raise VisiPrunerError("Answers under image_cache() differ from those of separate runs.")
            spent = sum(run.prefill for run in shared)
            ratios.append(spent / (plain[0].prefill + text))
            saved.append(sum(run.prefill for run in plain) / spent)
        targets += [
            _at_most(f"{name}: 8 questions / (1 image + 8 texts)", statistics.median(ratios), 1.15),
            Target(f"{name}: 8 separate runs / 8 questions", statistics.median(saved), 1.0),
        ]
    return CheckResult("questions", found.describe(), targets, [])


def host(effort: Effort, tell: Progress) -> CheckResult:
    """Tensor operations and reads from the device that pruning adds, counted on a tiny decoder without a clock."""
    targets = []
    for row in host_work.count(tell):
        bound = host_work.BOUNDS.get(row.method)
        if bound is None:
            continue
        for what, value, limit in (
            ("operations of a prefill / plain", row.prefill_ratio, bound.prefill),
            ("operations of a decode step / plain", row.decode_ratio, bound.decode),
            ("reads of a prefill", row.reads, bound.reads),
            ("operations of 8 unlike examples / one", row.batch_ratio, bound.batch),
        ):
            targets.append(_at_most(f"{row.method}: {what}", value, limit))
    return CheckResult("host", host_work.MODEL, targets, [])


def gpu(effort: Effort, tell: Progress) -> CheckResult:
    """Right, without waiting, and as fast as its FLOPs on a GPU: see `speed.gpu`. Raises ConfigError without one."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "The check 'gpu' needs a CUDA build of torch and a GPU that it can see; without one, the check 'host' "
            "counts what a GPU would be told to do."
        )
    return on_device(replace(effort, device="cuda"), tell)


def on_device(effort: Effort, tell: Progress, kernels: Sequence[str] = on_gpu.KERNELS) -> CheckResult:
    """The check `gpu` on the effort's device; on a CPU, where tests run it, without waits and idle time."""
    began, device = time.monotonic(), torch.device(effort.device)
    tried: dict[str, on_gpu.Kernel] = {}
    for kernel in kernels:
        tell(f"{kernel}: is it right?")
        tried[kernel] = on_gpu.invariants(kernel, device)
    size = effort.sizes(576)[0]
    found = effort.subject("llava-1.5-7b", rows=8 * (size + 100))
    points = list(on_gpu.points(found.model, tried, size, device, effort.rounds or 3, tell))
    targets = [_at_most(f"{one.name}: checks that fail", len(one.wrong), 0) for one in tried.values() if one.tried]
    for point in points:
        where = f"{point['attention']}, {point['batch']} at a time"
        dense = point["rows"][0]
        for row in point["rows"][1:]:
            targets.append(Target(f"{where}, {row['name']}: speed-up of prefill / FLOP ratio", row["of_limit"], 0.85))
            if row["waits"] is not None and not row["name"].endswith("detecting"):
                waits = row["waits"] - dense["waits"]
                targets.append(_at_most(f"{where}, {row['name']}: waits for the GPU beyond dense", waits, 2))
    targets.append(_at_most("minutes that this check took", (time.monotonic() - began) / 60, 8))
    told = [f"{one.name} left out: {one.left_out}" for one in tried.values() if one.left_out]
    told += [f"{one.name} fails {what}" for one in tried.values() for what in one.wrong]
    model = found.describe()
    return CheckResult("gpu", {**model, "notes": [*model["notes"], *told]}, targets, points)


CHECKS = {check.__name__: check for check in (prefill, overhead, scaling, batch, questions, host)}
ON_A_GPU = {"gpu": gpu}  # which "all" leaves out


def _at_most(what: str, value: float, bound: float) -> Target:
    return Target(what, value, bound, at_least=False)


def _scheduled(found: Subject) -> Scheduled:
    return Schedule.for_depth(found.depth).applied(VisiPruner.for_depth(found.depth), found.depth)


def _turns(
    found: Subject,
    contenders: Sequence[Contender],
    count: int,
    new_tokens: int,
    tell: Progress,
    warm: Sequence[Contender] = (),
) -> tuple[dict[str, list[Run]], list[dict[str, Any]]]:
    """Runs and rows; before them `warm` run once, by default the last contender."""
    warm = warm or contenders[-1:]
    runs, counted = take_turns(found.model, contenders, count, new_tokens, warm=warm, on_run=tell)
    return runs, rows(contenders, runs, counted)


def _point(size: Rows, table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**size.to_dict(), "rows": list(table)}
