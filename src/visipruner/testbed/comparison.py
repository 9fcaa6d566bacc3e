"""Methods side by side on the test set: accuracy, what was cut, and seconds measured in turns in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from visipruner.engine.attach import attach
from visipruner.engine.trace import PruneTrace
from visipruner.pruners.base import Pruner
from visipruner.scoring import is_right, normalize, wilson_interval
from visipruner.testbed.evaluate import MAX_NEW_TOKENS, batch_inputs, decode
from visipruner.testbed.testset import Sample

DENSE = "dense"


@dataclass
class Tally:
    """What one method did with all samples.

    Attributes:
        answers: one per sample. flops_cuts, attention_cuts: fractions per sample, exact and by the paper's formula.
        visual_tokens: per sample, visual tokens averaged over the decoder's layers.
        prefill_seconds, answer_seconds: per batch, to the first token and to the last, image encoding included.
    """

    answers: list[str] = field(default_factory=list)
    flops_cuts: list[float] = field(default_factory=list)
    attention_cuts: list[float] = field(default_factory=list)
    visual_tokens: list[float] = field(default_factory=list)
    triggers: list[int | None] = field(default_factory=list)
    prefill_seconds: list[float] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)


def compare(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    pruners: dict[str, Pruner],
    batch_size: int = 8,
    on_progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Tally]:
    """Every batch is answered densely and by every pruner, in an order that rotates, after one uncounted warm-up."""
    methods: dict[str, Pruner | None] = {DENSE: None, **pruners}
    tallies = {name: Tally() for name in methods}
    order = list(methods)
    warm_up = batch_inputs(model, processor, samples[:batch_size])
    for pruner in methods.values():
        _answer(model, processor, warm_up, pruner, Tally())
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        inputs = batch_inputs(model, processor, batch)
        for name in order:
            _answer(model, processor, inputs, methods[name], tallies[name])
        order = order[1:] + order[:1]
        on_progress(len(batch))
    return tallies


def _answer(model: Any, processor: Any, inputs: dict[str, Any], pruner: Pruner | None, tally: Tally) -> None:
    first: list[float] = []

    def clock(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        first.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    with nullcontext() if pruner is None else attach(model, pruner) as handle, torch.inference_mode():
        began = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stopping_criteria=[clock])
        ended = time.perf_counter()
        if handle is not None:
            _note(handle.trace, tally)
    tally.prefill_seconds.append(first[0] - began)
    tally.answer_seconds.append(ended - began)
    tally.answers += decode(processor, inputs, output)


def _note(trace: PruneTrace, tally: Tally) -> None:
    for index, example in enumerate(trace.examples):
        tally.flops_cuts.append(trace.flops_cut(index))
        tally.attention_cuts.append(trace.visual_attention_cut(index))
        layers = example.kept[:-1]
        tally.visual_tokens.append(sum(map(len, layers)) / len(layers))
        tally.triggers.append(example.trigger_layer)


def summarize(samples: Sequence[Sample], tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    """One JSON-ready row per method; fractions, not percent. Ratios above 1 mean faster than dense."""
    dense = tallies[DENSE]
    dense_right = [is_right(given, sample.answer) for given, sample in zip(dense.answers, samples, strict=True)]
    rows = []
    for name, tally in tallies.items():
        right = [is_right(given, sample.answer) for given, sample in zip(tally.answers, samples, strict=True)]
        same = [normalize(a) == normalize(b) for a, b in zip(tally.answers, dense.answers, strict=True)]
        rows.append(
            {
                "method": name,
                "samples": len(samples),
                "accuracy": sum(right) / len(samples),
                "interval": wilson_interval(sum(right), len(samples)),
                "agreement": sum(same) / len(samples),
                "broken": sum(was and not now for was, now in zip(dense_right, right, strict=True)),
                "repaired": sum(now and not was for was, now in zip(dense_right, right, strict=True)),
                "visual_tokens": _mean(tally.visual_tokens),
                "triggered": _mean([layer is not None for layer in tally.triggers]),
                "flops_cut": _mean(tally.flops_cuts) or 0.0,
                "visual_attention_cut": _mean(tally.attention_cuts) or 0.0,
                "prefill_ratio": sum(dense.prefill_seconds) / sum(tally.prefill_seconds),
                "answer_ratio": sum(dense.answer_seconds) / sum(tally.answer_seconds),
                "by_type": _by_type(samples, right),
            }
        )
    return rows


def _by_type(samples: Sequence[Sample], right: Sequence[bool]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for sample, good in zip(samples, right, strict=True):
        cell = table.setdefault(sample.type, {"right": 0, "total": 0})
        cell["right"] += good
        cell["total"] += 1
    return table


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as people paste it."""
    lines = [
        "| method | accuracy (95 % CI) | same answer as dense | broken / repaired | visual tokens per layer | "
        "FLOPs cut (counted) | prefill | whole answer |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        tokens = "all" if row["visual_tokens"] is None else f"{row['visual_tokens']:.0f}"
        lines.append(
            f"| {row['method']} | {100 * row['accuracy']:.1f} % ({100 * low:.0f}-{100 * high:.0f}) "
            f"| {100 * row['agreement']:.1f} % | {row['broken']} / {row['repaired']} | {tokens} "
            f"| {100 * row['flops_cut']:.1f} % | {row['prefill_ratio']:.2f}x | {row['answer_ratio']:.2f}x |"
        )
    return "\n".join(lines)
