"""Seconds that mean something: a device's work waited for, and what of a pruned prefill's went into the method's
evidence and choice, and into the engine's bookkeeping."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from visipruner.contract.pruner import Pruner
from visipruner.engine import attention, host
from visipruner.engine.attention import Kernel
from visipruner.engine.hooks import Hooks
from visipruner.engine.session import PromptSession

_ENGINE: tuple[tuple[type, tuple[str, ...]], ...] = (
    (Hooks, ("_locate", "_begin", "_end", "_decode", "attend")),
    (
        PromptSession,
        (
            "enter_layer",
            "leave_layers",
            "enter_attention",
            "leave_attention",
            "enter_projection",
            "leave_projection",
        ),
    ),
)
_METHOD = ("observes_entry", "select_entry", "observes", "select")


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
    """Attributes: `selection`, seconds in the method's own code; `engine`, seconds in all of ours, the former and the
    host's attention kernel included; `kernel`, seconds in the latter."""

    def __init__(self) -> None:
        self.selection, self.engine, self.kernel = Stopwatch(), Stopwatch(), Stopwatch()

    @property
    def bookkeeping(self) -> float:
        """Seconds of ours that are neither selection nor the host's own attention: gathers, masks, plans, records."""
        return self.engine.seconds - self.kernel.seconds - self.selection.seconds

    @contextmanager
    def running(self, pruner: Pruner | None) -> Iterator[None]:
        """Times what runs inside. Attach within; CPU only, as a GPU's work is not done when a function returns."""
        restore: list[tuple[Any, str, Any]] = []

        def put(owner: Any, name: str, new: Any) -> None:
            restore.append((owner, name, vars(owner).get(name)))
            setattr(owner, name, new)

        for owner, names in _ENGINE:
            for name in names:
                put(owner, name, self.engine.timed(getattr(owner, name)))
        put(host, "host_kernel", self._with_timed_kernel(attention.host_kernel))
        if pruner is not None:
            put(type(pruner), "start", self._with_timed_run(type(pruner).start))
        try:
            yield
        finally:
            for owner, name, old in reversed(restore):
                delattr(owner, name) if old is None else setattr(owner, name, old)

    def _with_timed_kernel(self, found: Callable[..., Kernel]) -> Callable[..., Kernel]:
        @wraps(found)
        def timed(*args: Any) -> Kernel:
            return self.kernel.timed(found(*args))

        return timed

    def _with_timed_run(self, start: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(start)
        def begun(pruner: Any) -> Any:
            run = start(pruner)
            for name in _METHOD:
                setattr(run, name, self.selection.timed(getattr(run, name)))
            return run

        return begun
