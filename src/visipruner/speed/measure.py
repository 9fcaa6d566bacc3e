"""One prompt, generated from once: its times, memory and work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from visipruner.accounting import cache_bytes, count_flops, dense_macs, prompt_macs
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.calls import cache_of
from visipruner.engine.clock import EngineClock, synchronize
from visipruner.engine.image_cache import ImageCache
from visipruner.engine.trace import PruneTrace
from visipruner.models.heads import give_whole_rows
from visipruner.models.shape import ModelShape
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
    return Run(
        prefill=stamps.at[0] - start,
        decode=statistics.median(steps) if steps else None,
        total=stamps.at[-1] - start,
        selection=stamps.first[0] if own else None,
        bookkeeping=stamps.first[1] if own else None,
        peak_bytes=peak.added,
        kv_bytes=cache_bytes(cache_of(output)).held,
        flops=_flops(shape, prompt, trace),
        visual=[prompt.visual[0]] * shape.num_layers if trace is None else [len(kept) for kept in trace[0].kept[:-1]],
        tokens=output.sequences[0, -new:].tolist(),
        measured_flops=counted.flops if counted is not None else None,
    )


def _attached(model: Any, prompt: Prompt, pruner: Pruner | None, clock: EngineClock) -> Any:
    return nullcontext() if pruner is None else attach(model, pruner, visual_mask=prompt.visual_mask, clock=clock)


def _flops(shape: ModelShape, prompt: Prompt, trace: PruneTrace | None) -> int:
    if trace is None:
        return len(prompt.lengths) * dense_macs(shape, prompt.width, logit_rows=1).flops
    return sum(prompt_macs(shape, example, logit_rows=1).flops for example in trace.examples)
