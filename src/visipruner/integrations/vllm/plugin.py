"""The plug-in: vLLM calls `register` in each of its processes, through the entry point `vllm.general_plugins`.

Without "visipruner" in `additional_config` nothing happens after that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from visipruner.integrations.vllm import internals
from visipruner.integrations.vllm.counters import MEANING, REMEMBERED, Counters, sentence
from visipruner.integrations.vllm.decoder import narrowed
from visipruner.integrations.vllm.refusals import check_config, check_decoder, choose_settings
from visipruner.integrations.vllm.request import Request
from visipruner.integrations.vllm.settings import KEY, Served, served
from visipruner.integrations.vllm.step import Step


def register() -> None:
    """Gets in where engines are configured and made."""
    internals.around_engine_config(_configure)
    internals.around_runner(_make_runner)
    internals.around_scheduler(_make_scheduler)
    internals.around_statistics(_record, _log)


# ---- in the process that the user started ---------------------------------------------------------------------------


def _configure(original: Callable[..., Any], args: Any, *more: Any, **kwargs: Any) -> Any:
    """Makes vLLM's configuration, or raises one of our errors. Other processes get the method in JSON values."""
    if not isinstance(args.additional_config, dict) or KEY not in args.additional_config:
        return original(*more, **kwargs)
    choose_settings(args)
    config = original(*more, **kwargs)
    found = served(args.additional_config[KEY], config.model_config.get_total_num_hidden_layers())
    check_config(config, found.allow_untested)
    internals.capture_no_decodes(config)
    config.additional_config = {**config.additional_config, KEY: found.as_json()}
    internals.logger(__name__).info("visipruner: %s %s", found.pruner.name, found.pruner.settings())
    return config


_totals: Counter[str] = Counter()
_logged: Counter[str] = Counter()


def _record(original: Callable[..., Any], _: Any, stats: Any = None, *more: Any, **kwargs: Any) -> Any:
    """Takes our counters out of the statistics on their way to vLLM's loggers."""
    found = internals.received(stats, KEY)
    for name, count in found.items():
        is_state = name == REMEMBERED
        internals.count_for_prometheus(f"{KEY}_{name}", MEANING[name], count, is_state)
        _totals[name] += 0 if is_state else count
    return original(stats, *more, **kwargs)


def _log(original: Callable[..., Any], _: Any) -> Any:
    result = original()
    if _totals != _logged:
        _logged.update(_totals - _logged)
        internals.logger(__name__).info(sentence(_totals))
    return result


# ---- in the process of the engine -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Engine:
    """What the runner and the scheduler of one engine share.

    Attributes:
        requests: of the requests alive whose prompts were begun. failed: ids that must end with an error.
    """

    served: Served
    num_layers: int
    requests: dict[str, Request] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)
    _remembered: int = 0

    def take_failed(self) -> set[str]:
        found, self.failed = self.failed, set()
        return found

    def news(self) -> dict[str, int]:
        """What is worth telling since this was asked last."""
        found, now = self.counters.take(), len(self.requests)
        if now != self._remembered:
            found[REMEMBERED] = self._remembered = now
        return found

    def forget(self, ids: Sequence[str]) -> None:
        for name in ids:
            self.requests.pop(name, None)


engines: dict[str, Engine] = {}


def _engine_of(config: Any) -> Engine | None:
    """The engine that a configuration is of, or None where it asks for nothing of ours."""
    asked = config.additional_config.get(KEY) if isinstance(config.additional_config, dict) else None
    if asked is None:
        return None
    num_layers = config.model_config.get_total_num_hidden_layers()
    return engines.setdefault(config.instance_id, Engine(served(asked, num_layers), num_layers))


def _make_runner(original: Callable[..., Any], runner: Any, vllm_config: Any, *more: Any, **kwargs: Any) -> None:
    original(vllm_config, *more, **kwargs)
    engine = _engine_of(vllm_config)
    if engine is not None:
        internals.check_once_loaded(runner, partial(check_decoder, allow_untested=engine.served.allow_untested))
        internals.run_model_through(runner, partial(_run_model, engine, runner))
        internals.tell_finished(runner, engine.forget)


def _make_scheduler(original: Callable[..., Any], scheduler: Any, vllm_config: Any, *more: Any, **kwargs: Any) -> None:
    original(vllm_config, *more, **kwargs)
    engine = _engine_of(vllm_config)
    if engine is not None:
        internals.end_failed(scheduler, engine.take_failed)
        internals.send_with_statistics(scheduler, KEY, engine.news)


def _run_model(engine: Engine, runner: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One forward of the model."""
    step = _step(engine, runner) if internals.has_attention() else None
    if step is None:
        return original(*args, **kwargs)
    metadata = internals.Metadata(runner, step, internals.rows_given(args, kwargs))
    if not step.is_read:
        for layer in range(engine.num_layers):
            metadata.install(layer)
        return original(*args, **kwargs)
    internals.run_uncompiled()
    with narrowed(internals.decoder_of(runner), step, metadata.install):
        output = original(*args, **kwargs)
    _note(engine, step)
    return output


def _step(engine: Engine, runner: Any) -> Step | None:
    """What this forward is to us; None where all rows run everywhere on whole caches."""
    ids, ran, lengths = internals.batch_of(runner)
    requests = [_known(engine, runner, *each) for each in zip(ids, ran, lengths, strict=True)]
    if not any(request.is_read or request.is_packed for request in requests):
        return None
    return Step(ids, requests, np.array(ran), np.array(lengths))


def _known(engine: Engine, runner: Any, name: str, ran: int, length: int) -> Request:
    """A request in this forward; one that has run no row yet, or was preempted, begins."""
    request = engine.requests.get(name)
    if request is not None and ran > 0:
        return request
    pictures, prompt_length = internals.prompt_of(runner, name)
    request = Request.of(pictures, prompt_length, engine.num_layers, runner.device)
    engine.requests[name] = request
    if request.is_visual:
        is_whole = ran == 0 and length >= prompt_length and not internals.wants_every_row(runner, name)
        request.read(engine.served.pruner.begin(in_line=internals.is_in_line(runner)) if is_whole else None)
        engine.counters.prompts_dense += not is_whole
    return request


def _note(engine: Engine, step: Step) -> None:
    """Counts what became of the prompts, which are read now."""
    counters = engine.counters
    for name, request in zip(step.ids, step.requests, strict=True):
        error = step.failed.get(name)
        if error is not None:
            counters.prompts_failed += 1
            engine.failed.add(name)
            internals.logger(__name__).error("Request %s ends: the method failed.", name, exc_info=error)
        elif request.run is not None:
            counters.prompts_pruned += 1
            counters.visual_tokens += len(request.layout.visual)
            counters.visual_tokens_dropped += int(request.gone[-1])
            counters.visual_rows_skipped += int(request.gone.sum())
        request.run = None
