"""Several ways to run a prompt, in turns; medians with their spread, and ratios within a round."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visipruner.contract.pruner import Pruner
from visipruner.speed import machine
from visipruner.speed.measure import Run, run_once
from visipruner.speed.prompt import Prompt

DENSE, TEXT = "dense", "text only"


@dataclass(frozen=True)
class Contender:
    """One way to run: a prompt, and what prunes it (None: the plain model)."""

    name: str
    prompt: Prompt
    pruner: Pruner | None = None


def take_turns(
    model: Any,
    contenders: Sequence[Contender],
    rounds: int,
    new_tokens: int,
    *,
    warm: Sequence[Contender] = (),
    on_run: Callable[[str], object] = lambda name: None,
) -> tuple[dict[str, list[Run]], dict[str, Run]]:
    """Every contender once a round, the order turning from round to round.

    A busy minute then falls on all of them alike. Returns timed runs by contender, and those of the contenders in
    `warm`, which run once before; these do not count, and torch counts their FLOPs.

    Raises MachineError when the machine swaps meanwhile.
    """
    swapped = machine.swapped_bytes()
    counted = {}
    for contender in warm:
        on_run(f"{contender.name}, warm-up")
        counted[contender.name] = run_once(model, contender.prompt, contender.pruner, 1, count=True)
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        gc.collect()  # of an earlier round's caches, which would hide a peak
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            on_run(f"{contender.name}, round {number + 1} of {rounds}")
            runs[contender.name].append(run_once(model, contender.prompt, contender.pruner, new_tokens))
            machine.check_no_swapping(swapped)
    return runs, counted


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Median, lowest and highest; None where a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return {"median": statistics.median(known), "low": min(known), "high": max(known)}


def rows(
    contenders: Sequence[Contender], runs: Mapping[str, Sequence[Run]], counted: Mapping[str, Run]
) -> list[dict[str, Any]]:
    """One JSON-ready row a contender. Ratios are dense over this, taken within each round, so more is better."""
    return [_row(contender, runs, counted.get(contender.name)) for contender in contenders]


def _row(contender: Contender, runs: Mapping[str, Sequence[Run]], counted: Run | None) -> dict[str, Any]:
    own, dense, text = runs[contender.name], runs.get(DENSE), runs.get(TEXT)
    first = own[0]
    flops_ratio = dense[0].flops / first.flops if dense else None
    speedup = _ratio(dense, own, "prefill")
    return {
        "name": contender.name,
        "method": None if contender.pruner is None else contender.pruner.name,
        "settings": None if contender.pruner is None else contender.pruner.settings(),
        "rows": contender.prompt.lengths,
        "visual_tokens": contender.prompt.visual,
        "visual_per_layer": first.visual,
        "prefill": spread([run.prefill for run in own]),
        "decode": spread([run.decode for run in own]),
        "total": spread([run.total for run in own]),
        "flops": first.flops,
        "measured_flops": None if counted is None else counted.measured_flops,
        "flops_ratio": flops_ratio,
        "image_flops_cut": None if not dense or not text else _image_cut(first.flops, dense[0].flops, text[0].flops),
        "speedup": speedup,
        "of_limit": None if speedup is None or flops_ratio is None else speedup["median"] / flops_ratio,
        "decode_speedup": _ratio(dense, own, "decode"),
        "total_speedup": _ratio(dense, own, "total"),
        "times_text_only": _ratio(own, text, "prefill"),
        "selection_share": _share(own, "selection"),
        "bookkeeping_share": _share(own, "bookkeeping"),
        "peak_bytes": spread([run.peak_bytes for run in own]),
        "kv_bytes": first.kv_bytes,
        "runs": [{"prefill": run.prefill, "decode": run.decode, "total": run.total} for run in own],
    }


def _ratio(over: Sequence[Run] | None, under: Sequence[Run] | None, what: str) -> dict[str, float] | None:
    if not over or not under:
        return None
    pairs = [(getattr(top, what), getattr(bottom, what)) for top, bottom in zip(over, under, strict=True)]
    return spread([None if top is None or bottom is None else top / bottom for top, bottom in pairs])


def _share(own: Sequence[Run], what: str) -> float | None:
    part = spread([getattr(run, what) for run in own])
    return None if part is None else statistics.median(getattr(run, what) / run.prefill for run in own)


def _image_cut(flops: int, dense: int, text: int) -> float | None:
    """The fraction of what the image adds to the prompt's FLOPs that was not spent."""
    return None if dense == text else 1 - (flops - text) / (dense - text)
