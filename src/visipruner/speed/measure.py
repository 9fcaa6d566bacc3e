"""Several ways to run a prompt, in turns: times, memory and work of each run, medians, and ratios within a round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from visipruner.accounting import cache_bytes, count_flops, dense_macs, prompt_macs
from visipruner.adapters.base import submodule
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.calls import cache_of
from visipruner.engine.clock import EngineClock, synchronize
from visipruner.engine.image_cache import ImageCache
from visipruner.engine.trace import PruneTrace
from visipruner.models.heads import give_whole_rows
from visipruner.models.shape import ModelShape
from visipruner.speed import machine
from visipruner.speed.machine import peak_memory
from visipruner.speed.prompt import Prompt


@dataclass(frozen=True)
class Run:
    """What one `generate` cost.

    Attributes:
        prefill: seconds to the first token. decode: median seconds of a token after it, None for a single token.
        total: seconds to the last token.
        selection, bookkeeping: seconds of the prefill in the method's and in the engine's own code, None unpruned.
        peak_bytes: most memory held beyond what was held before, None where the system cannot say.
        kv_bytes: keys and values held at the end.
        flops: exact FLOPs of the decoder's prompt with one row of logits an example, padding that ran included.
        measured_flops: the same as torch counts it, only where that was asked for.
        visual: visual tokens entering each layer, first example.
        tokens: the first example's new tokens.
    """

    prefill: float
    decode: float | None
    total: float
    selection: float | None
    bookkeeping: float | None
    peak_bytes: int | None
    kv_bytes: int
    flops: int
    visual: list[int]
    tokens: list[int]
    measured_flops: int | None = None


class _Stamps:
    """A stopping criterion that never stops: it notes when every token is there."""

    def __init__(self, device: torch.device, clock: EngineClock) -> None:
        self.at: list[float] = []
        self.first: tuple[float, float] = (0.0, 0.0)
        self._device, self._clock = device, clock
        self._before = (clock.selection.seconds, clock.bookkeeping)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        synchronize(self._device)
        self.at.append(time.perf_counter())
        if len(self.at) == 1:
            selection, bookkeeping = self._before
            self.first = (self._clock.selection.seconds - selection, self._clock.bookkeeping - bookkeeping)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def run_once(model: Any, prompt: Prompt, pruner: Pruner | None, new_tokens: int, *, count: bool = False) -> Run:
    """Greedy generation of `new_tokens` tokens through the stock `generate`; attaching is not timed.

    `count` lets torch count the FLOPs of a prefill of one token, which takes a little time of its own.
    """
    clock = EngineClock()
    with _attached(model, prompt, pruner, clock) as handle, torch.inference_mode():
        return _generated(model, prompt, handle, clock, 1 if count else new_tokens, count)


def run_shared(model: Any, prompts: Sequence[Prompt], pruner: Pruner, new_tokens: int) -> list[Run]:
    """As `run_once` for prompts about one image, one after another under one `image_cache()`."""
    clock, cache = EngineClock(), ImageCache()
    runs = []
    with torch.inference_mode():
        for prompt in prompts:  # embeddings of other lengths need other masks, hence to be attached anew
            with _attached(model, prompt, pruner, clock) as handle, handle.image_cache(cache):
                runs.append(_generated(model, prompt, handle, clock, new_tokens, count=False))
    return runs


def _generated(model: Any, prompt: Prompt, handle: Any, clock: EngineClock, new: int, count: bool) -> Run:
    device = torch.device(model.device)
    stamps = _Stamps(device, clock)
    counting = count_flops() if count else nullcontext()
    with give_whole_rows(model), peak_memory(device) as peak, counting as counted:
        start = time.perf_counter()
        output = model.generate(
            **prompt.inputs,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            num_beams=1,
            pad_token_id=0,
            stopping_criteria=[stamps],
            return_dict_in_generate=True,
        )
    trace = None if handle is None else handle.trace
    steps = [after - before for before, after in zip(stamps.at, stamps.at[1:], strict=False)]
    shape = ModelShape.from_config(model.config)
    own = handle is not None and device.type == "cpu"
    flops, visual = decoder_work(shape, prompt, trace)
    return Run(
        prefill=stamps.at[0] - start,
        decode=statistics.median(steps) if steps else None,
        total=stamps.at[-1] - start,
        selection=stamps.first[0] if own else None,
        bookkeeping=stamps.first[1] if own else None,
        peak_bytes=peak.added,
        kv_bytes=cache_bytes(cache_of(output)).held,
        flops=flops,
        visual=visual,
        tokens=output.sequences[0, -new:].tolist(),
        measured_flops=counted.flops if counted is not None else None,
    )


def _attached(model: Any, prompt: Prompt, pruner: Pruner | None, clock: EngineClock) -> Any:
    return nullcontext() if pruner is None else attach(model, pruner, visual_mask=prompt.visual_mask, clock=clock)


def decoder_work(shape: ModelShape, prompt: Prompt, trace: PruneTrace | None) -> tuple[int, list[int]]:
    """`Run.flops` and `Run.visual` of a prompt that was read; `trace` is None without pruning."""
    if trace is None:
        flops = len(prompt.lengths) * dense_macs(shape, prompt.width, logit_rows=1).flops
        return flops, [prompt.visual[0]] * shape.num_layers
    flops = sum(prompt_macs(shape, example, logit_rows=1).flops for example in trace.examples)
    return flops, [len(kept) for kept in trace[0].kept[:-1]]


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
    run: Callable[[Contender], Run] | None = None,
) -> tuple[dict[str, list[Run]], dict[str, Run]]:
    """Timed runs by contender (of `run_once`, or of `run`), each once a round in an order that turns, so that a busy
    minute falls on all alike; and those of `warm`, which run once before, uncounted, while torch counts their FLOPs.

    Raises MachineError when the machine swaps meanwhile.
    """
    run = run or (lambda one: run_once(model, one.prompt, one.pruner, new_tokens))
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
            runs[contender.name].append(run(contender))
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
        "of_reach": _of_reach(own, dense, text),
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


def _of_reach(own: Sequence[Run], dense: Sequence[Run] | None, text: Sequence[Run] | None) -> float | None:
    """What plain runs can reach over this prefill, median of the rounds: seconds between those of the text alone and
    the dense prompt's, in proportion to the visual tokens in the layers. Unlike FLOPs it knows that a layer of few rows
    takes as long as reading its weights does."""
    if not dense or not text or not sum(dense[0].visual):
        return None
    part = sum(own[0].visual) / sum(dense[0].visual)
    return statistics.median(
        (few.prefill + part * (full.prefill - few.prefill)) / run.prefill
        for run, full, few in zip(own, dense, text, strict=True)
    )


def _share(own: Sequence[Run], what: str) -> float | None:
    part = spread([getattr(run, what) for run in own])
    return None if part is None else statistics.median(getattr(run, what) / run.prefill for run in own)


def _image_cut(flops: int, dense: int, text: int) -> float | None:
    """The fraction of what the image adds to the prompt's FLOPs that was not spent."""
    return None if dense == text else 1 - (flops - text) / (dense - text)


_PATHS = ("model.vision_tower", "model.visual", "vision_tower", "visual")


def tower_seconds(model: Any, visual_tokens: int) -> float | None:
    """Seconds of the tower for as many pixels as make `visual_tokens` tokens; None for towers of unknown input."""
    tower, config = submodule(model, _PATHS), getattr(model.config, "vision_config", None)
    if tower is None or config is None:
        return None
    inputs = _patches(model, config, visual_tokens) or _pictures(model, config, visual_tokens)
    if inputs is None:
        return None
    with torch.inference_mode():
        synchronize(model.device)
        start = time.perf_counter()
        tower(*inputs)
        synchronize(model.device)
        return time.perf_counter() - start


def _patches(model: Any, config: Any, tokens: int) -> tuple[Any, ...] | None:
    """Qwen-VL's towers take a list of patches and the image's grid."""
    merge, frames = getattr(config, "spatial_merge_size", None), getattr(config, "temporal_patch_size", None)
    if merge is None or frames is None:
        return None
    side = max(1, round(math.sqrt(tokens))) * merge
    size = config.in_channels * frames * config.patch_size**2
    pixels = torch.zeros(side * side, size, dtype=model.dtype, device=model.device)
    return pixels, torch.tensor([[1, side, side]], device=model.device)


def _pictures(model: Any, config: Any, tokens: int) -> tuple[Any, ...] | None:
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    patch = patch if isinstance(patch, int) else patch[0]
    per_image = getattr(model.config, "image_seq_length", None) or (height // patch) * (width // patch)
    count = max(1, round(tokens / per_image))
    return (torch.zeros(count, 3, height, width, dtype=model.dtype, device=model.device),)
