"""The promises of docs/performance.md, each measured by one check of `visipruner bench --check`, with its targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from visipruner.accounting import dense_decode_macs
from visipruner.errors import VisiPrunerError
from visipruner.pruners.none import NoPruning
from visipruner.pruners.visipruner import VisiPruner
from visipruner.speed import host_work, subject
from visipruner.speed.measure import run_once, run_shared
from visipruner.speed.prompt import Rows, asked, embedded, text_only
from visipruner.speed.rounds import DENSE, TEXT, Contender, rows, take_turns
from visipruner.speed.schedule import Schedule
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
        """JSON-ready; `met` included."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class CheckResult:
    """What a check found: targets, measured points for tables, and the model they were measured on."""

    name: str
    model: dict[str, Any]
    targets: list[Target]
    points: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
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
        return subject.from_shape(
            self.shape or shape,
            dtype=self.dtype,
            attn=self.attn,
            layers=self.layers,
            tie=self.tie,
            device=self.device,
            rows=rows,
        )

    def sizes(self, *own: int) -> tuple[int, ...]:
        return self.visual or own


def prefill(effort: Effort, tell: Progress) -> CheckResult:
    """Prefill as fast as its FLOPs, at LLaVA-1.5-7B's shape; peak memory; the cost of selecting."""
    found = effort.subject("llava-1.5-7b")
    depth, shape = found.depth, Rows(visual=effort.sizes(576)[0])
    fixed = Schedule.for_depth(depth)
    # The paper's mean: 7 shallow layers, all tokens in 14.8 layers, 10.3 of them up to layer 23.9.
    mean = replace(fixed, exit=min(depth - 1, round(24 * depth / 32)))
    ours = replace(VisiPruner(), shallow_end=min(round(7 * depth / 32), fixed.filter - 1))
    prompt = embedded(found.model, [shape])
    contenders = [
        Contender(DENSE, prompt),
        Contender("middle and deep stage", prompt, fixed.applied(replace(ours, shallow_end=0), depth)),
        Contender("all stages", prompt, mean.applied(ours, depth)),
        Contender("all stages, shallow ffn", prompt, mean.applied(replace(ours, shallow_visual="ffn"), depth)),
        Contender("all stages, shallow late", prompt, mean.applied(replace(ours, shallow_visual="late"), depth)),
        Contender(TEXT, text_only(found.model, shape.before + shape.after)),
    ]
    runs, counted = take_turns(found.model, contenders, effort.rounds or 3, 4, warm=contenders[-1:], on_run=tell)
    table = {row["name"]: row for row in rows(contenders, runs, counted)}
    two, three, ffn, late = (table[contender.name] for contender in contenders[1:5])
    dense = table[DENSE]
    targets = [
        Target("middle and deep stage: speed-up of prefill / FLOP ratio", two["of_limit"], 0.97),
        Target("all stages: speed-up of prefill / FLOP ratio", three["of_limit"], 0.95),
        Target("all stages, ffn: speed-up of prefill / FLOP ratio", ffn["of_limit"], 0.95),
        Target("all stages, late: speed-up of prefill / FLOP ratio", late["of_limit"], 0.95),
        Target("all stages: cut of the FLOPs that the image adds", three["image_flops_cut"], 0.539),
        Target("all stages, ffn: cut of the FLOPs that the image adds", ffn["image_flops_cut"], 0.60),
        Target("all stages: keys and values held / dense", three["kv_bytes"] / dense["kv_bytes"], 1.0, at_least=False),
    ]
    for row in (two, three, ffn, late):
        if row["selection_share"] is not None:
            share = row["selection_share"] + row["bookkeeping_share"]
            targets.append(Target(f"{row['name']}: selection and bookkeeping / prefill", share, 0.01, at_least=False))
        if row["peak_bytes"] is not None:
            ratio = row["peak_bytes"]["median"] / dense["peak_bytes"]["median"]
            targets.append(Target(f"{row['name']}: peak memory / dense", ratio, 1.0, at_least=False))
    return CheckResult("prefill", found.describe(), targets, [_point(shape, list(table.values()))])


def overhead(effort: Effort, tell: Progress) -> CheckResult:
    """A text-only prompt with a pruner attached costs what it costs without."""
    found = effort.subject("llava-1.5-7b")
    prompt = text_only(found.model, 48)
    attached = Schedule.for_depth(found.depth).applied(VisiPruner.for_depth(found.depth), found.depth)
    contenders = [Contender(DENSE, prompt), Contender("attached", prompt, attached)]
    runs, counted = take_turns(found.model, contenders, effort.rounds or 6, 1, warm=contenders, on_run=tell)
    table = rows(contenders, runs, counted)
    targets = []
    if table[1]["bookkeeping_share"] is not None:
        share = table[1]["bookkeeping_share"]
        targets.append(Target("text only: the engine's own time / prefill", share, 0.005, at_least=False))
    else:
        ratio = 1 / table[1]["speedup"]["median"] - 1
        targets.append(Target("text only: prefill attached / plain - 1", ratio, 0.005, at_least=False))
    return CheckResult("overhead", found.describe(), targets, [_point(Rows(48, 0, 0), table)])


def scaling(effort: Effort, tell: Progress) -> CheckResult:
    """576, 2,304 and 9,216 visual tokens: seconds, memory, and decoding in proportion to the keys that are gone."""
    sizes = effort.sizes(576, 2304, 9216)
    found = effort.subject("llava-onevision-0.5b", rows=max(sizes) + 48)
    depth = found.depth
    pruner = Schedule.for_depth(depth).applied(VisiPruner.for_depth(depth), depth)
    weights = dense_decode_macs(found.shape, 0).total * found.model.dtype.itemsize  # every weight is read once a token
    targets, points = [], []
    for visual in sizes:
        shape = Rows(visual=visual)
        prompt = embedded(found.model, [shape])
        contenders = [Contender(DENSE, prompt), Contender("all stages", prompt, pruner)]
        contenders.append(Contender(TEXT, text_only(found.model, shape.before + shape.after)))

        def say(what: str, visual: int = visual) -> None:
            tell(f"{visual} visual tokens: {what}")

        runs, counted = take_turns(found.model, contenders, effort.rounds or 2, 16, warm=contenders[-1:], on_run=say)
        table = rows(contenders, runs, counted)
        points.append(_point(shape, table))
        dense, ours = table[:2]
        promised = (weights + dense["kv_bytes"]) / (weights + ours["kv_bytes"])
        targets += [
            Target(f"{visual}: speed-up of prefill / FLOP ratio", ours["of_limit"], 0.95),
            Target(f"{visual}: speed-up of decoding", ours["decode_speedup"]["median"], 0.99),
            Target(
                f"{visual}: speed-up of decoding / ratio of bytes read",
                ours["decode_speedup"]["median"] / promised,
                0.95,
            ),
        ]
    return CheckResult("scaling", found.describe(), targets, points)


def batch(effort: Effort, tell: Progress) -> CheckResult:
    """Eight unlike examples cost what they cost alone: none pays for another's padding."""
    base = effort.sizes(576)[0]
    shapes = [Rows(20 + 5 * number, base, 10 + 4 * number) for number in range(8)]
    found = effort.subject("llava-onevision-0.5b", rows=sum(shape.total for shape in shapes))
    depth = found.depth
    pruner = Schedule.for_depth(depth).applied(VisiPruner.for_depth(depth), depth)
    together = embedded(found.model, shapes)
    contenders = [Contender(DENSE, together), Contender("batch of 8", together, pruner)]
    singles = [
        Contender(f"example {number}", embedded(found.model, [shape], number), pruner)
        for number, shape in enumerate(shapes)
    ]
    runs, _ = take_turns(found.model, [*contenders, *singles], effort.rounds or 2, 1, warm=singles[:1], on_run=tell)
    table = rows(contenders, runs, {})
    alone = [sum(runs[single.name][number].prefill for single in singles) for number in range(len(runs[DENSE]))]
    paid = statistics.median(run.prefill / single for run, single in zip(runs["batch of 8"], alone, strict=True))
    targets = [
        Target("batch of 8 / sum of the single runs", paid, 1.05, at_least=False),
        Target("batch of 8: speed-up of prefill / FLOP ratio", table[1]["of_limit"], 0.90),
    ]
    return CheckResult("batch", found.describe(), targets, [_point(shapes[0], table)])


def questions(effort: Effort, tell: Progress) -> CheckResult:
    """Eight questions about one image under `image_cache()` cost one image and eight prompts of text."""
    count, base = 8, effort.sizes(576)[0]
    found = effort.subject("llava-onevision-0.5b")
    depth = found.depth
    pruner = Schedule.for_depth(depth).applied(VisiPruner.for_depth(depth), depth)
    prompts = asked(found.model, [Rows(35, base, 8 + 2 * number) for number in range(count)])
    texts = [text_only(found.model, prompt.width - base) for prompt in prompts]
    targets = []
    for name, method in (("dense", NoPruning()), ("all stages", pruner)):
        ratios, saved = [], []
        for number in range(effort.rounds or 2):
            tell(f"{name}, round {number + 1}")
            plain = [run_once(found.model, prompt, None if name == "dense" else method, 4) for prompt in prompts]
            text = sum(run_once(found.model, prompt, None, 1).prefill for prompt in texts)
            shared = run_shared(found.model, prompts, method, 4)
            if [run.tokens for run in plain] != [run.tokens for run in shared]:
                raise VisiPrunerError("Answers under image_cache() differ from those of separate runs.")
            ratios.append(sum(run.prefill for run in shared) / (plain[0].prefill + text))
            saved.append(sum(run.prefill for run in plain) / sum(run.prefill for run in shared))
        targets += [
            Target(f"{name}: 8 questions / (1 image + 8 texts)", statistics.median(ratios), 1.15, at_least=False),
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
            targets.append(Target(f"{row.method}: {what}", value, limit, at_least=False))
    return CheckResult("host", host_work.MODEL, targets, [])


def _point(shape: Rows, table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {**shape.to_dict(), "rows": list(table)}


CHECKS: dict[str, Callable[[Effort, Progress], CheckResult]] = {
    "prefill": prefill,
    "overhead": overhead,
    "scaling": scaling,
    "batch": batch,
    "questions": questions,
    "host": host,
}
