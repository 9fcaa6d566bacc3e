"""What runs beside vLLM's model runner: it remembers requests, and has their prompts pruned as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from visipruner.integrations.vllm.counters import REMEMBERED, Numbers
from visipruner.integrations.vllm.decoder import narrowed
from visipruner.integrations.vllm.internals import forward, hooks, model
from visipruner.integrations.vllm.refusals import check_decoder
from visipruner.integrations.vllm.request import Request
from visipruner.integrations.vllm.settings import Served
from visipruner.integrations.vllm.step import Step


@dataclass(frozen=True)
class Report:
    """What the scheduler's process is told: requests that must end with an error, blocks to free, and numbers."""

    failed: list[str]
    free: list[forward.FreeBlocks]
    numbers: dict[str, int]


@dataclass(eq=False)
class Worker:
    """Of one model runner.

    Attributes:
        in_line: whether the model numbers rows one after another.
        requests: those alive whose prompts were begun. failed: those whose method failed, and
            free: blocks that were dropped since the last report.
    """

    runner: Any
    served: Served
    num_layers: int
    in_line: bool
    requests: dict[str, Request] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    free: list[forward.FreeBlocks] = field(default_factory=list)
    numbers: Numbers = field(default_factory=Numbers)
    _remembered: int = 0

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        return forward.places_of(self.runner)

    def begin(self) -> None:
        """Takes its place in the runner."""
        check = partial(check_decoder, allow_untested=self.served.allow_untested)
        hooks.check_once_loaded(self.runner, check)
        hooks.run_model_through(self.runner, self.run_model)
        hooks.tell_finished(self.runner, self.forget)
        if self.served.cache_groups:
            hooks.group_caches(self.runner, self.served.cache_groups)

    def forget(self, ids: Sequence[str]) -> None:
        """These requests are over."""
        for name in ids:
            self.requests.pop(name, None)

    def report(self) -> Report | None:
        """What there is to tell since the last time."""
        if len(self.requests) != self._remembered:
            self._remembered = len(self.requests)
            self.numbers.add({REMEMBERED: self._remembered})
        found = Report(self.failed, self.free, self.numbers.take())
        self.failed, self.free = [], []
        return found if found.failed or found.free or found.numbers else None

    def run_model(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """One forward of the model."""
        step = self._step() if forward.has_attention() else None
        if step is None:
            return original(*args, **kwargs)
        metadata = forward.Metadata(self.runner, self._places, step, model.rows_given(args, kwargs))
        if not step.is_read:
            for layer in range(self.num_layers):
                metadata.install(layer)
            return original(*args, **kwargs)
        forward.run_uncompiled()
        with narrowed(model.decoder_of(self.runner), step, metadata.install):
            output = original(*args, **kwargs)
        self._note(step)
        return output

    def _step(self) -> Step | None:
        """What this forward is to us; None where all rows run everywhere on whole caches."""
        ids = forward.names_of(self.runner)
        if all(name in self.requests and not self.requests[name].is_visual for name in ids):
            return None  # text alone costs as little as possible
        ran, lengths = forward.batch_of(self.runner)
        requests = [self._known(*each) for each in zip(ids, ran, lengths, strict=True)]
        if not any(request.is_read or request.is_packed for request in requests):
            return None
        return Step(ids, requests, np.array(ran), np.array(lengths))

    def _known(self, name: str, ran: int, length: int) -> Request:
        """A request in this forward; one that has run no row yet, or was preempted, begins."""
        request = self.requests.get(name)
        if request is not None and ran > 0:
            return request
        pictures, prompt_length = forward.prompt_of(self.runner, name)
        request = Request.of(pictures, prompt_length, self.num_layers, self.runner.device)
        self.requests[name] = request
        if request.is_visual:
            is_whole = ran == 0 and length >= prompt_length and not forward.wants_every_row(self.runner, name)
            request.read(self.served.pruner.begin(lambda: self.in_line) if is_whole else None)
            self.numbers.add({"prompts_dense": int(not is_whole)})
        return request

    def _note(self, step: Step) -> None:
        """Counts what became of the prompts, which are read now, and drops blocks that they no longer need."""
        for name, request, rows in zip(step.ids, step.requests, (step.ran + step.lengths).tolist(), strict=True):
            if self.served.cache_groups and request.run is not None and request.is_packed:
                self.free += forward.shorten(self.runner, name, request.gone, rows)
            error = step.failed.get(name)
            if error is not None:
                self.failed.append(name)
                self.numbers.add({"prompts_failed": 1})
                hooks.logger(__name__).error("Request %s ends: the method failed.", name, exc_info=error)
            elif request.run is not None:
                self.numbers.add(
                    {
                        "prompts_pruned": 1,
                        "visual_tokens": len(request.layout.visual),
                        "visual_tokens_dropped": int(request.gone[-1]),
                        "visual_rows_skipped": int(request.gone.sum()),
                    }
                )
            request.run = None
