"""Splits prefill time into selection (the method's own code) and engine overhead; waits for a device's work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from visipruner.contract.pruner import PromptRun

_METHOD = ("observes_entry", "select_entry", "select_entries", "observes", "select")


def synchronize(device: torch.device) -> None:
    """Waits until an accelerator has done what it was told; the CPU needs no waiting."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Stopwatch:
    """Seconds spent inside some functions; a call from within another of them counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time added to `seconds`."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - start

        return run


class EngineClock:
    """Times one handle: `attach(model, pruner, clock=EngineClock())`. On a CPU only, as a GPU's work is not done when a
    function returns.

    Attributes:
        selection: the method's own code. engine: all of ours, the former and the host's attention kernel included.
        kernel: the latter.
    """

    def __init__(self) -> None:
        self.selection, self.engine, self.kernel = Stopwatch(), Stopwatch(), Stopwatch()

    @property
    def bookkeeping(self) -> float:
        """Seconds of ours that are neither selection nor the host's own attention: gathers, masks, plans, records."""
        return self.engine.seconds - self.kernel.seconds - self.selection.seconds

    def watched(self, run: PromptRun) -> PromptRun:
        """`run`, with its choices timed."""
        for name in _METHOD:
            setattr(run, name, self.selection.timed(getattr(run, name)))
        return run
