"""The plug-in: vLLM calls `register` in each of its processes, through the entry point `vllm.general_plugins`.

Without "visipruner" in `additional_config` nothing happens after that. With it, numbers and failures go from the model
runner's process (`worker`) with a step's output to the scheduler's, and with its statistics to the one that serves; on
some platforms these are one process or two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from visipruner.integrations.vllm.counters import MEANING, REMEMBERED, Numbers, sentence
from visipruner.integrations.vllm.internals import forward, hooks
from visipruner.integrations.vllm.refusals import check_config, choose_settings
from visipruner.integrations.vllm.settings import KEY, Served, served
from visipruner.integrations.vllm.worker import Report, Worker


def register() -> None:
    """Gets in where engines are configured and made."""
    hooks.around_engine_config(_configure)
    hooks.around_runner(_make_runner)
    hooks.around_scheduler(_make_scheduler)
    hooks.around_statistics(_record, _log)


def _configure(original: Callable[..., Any], args: Any, *more: Any, **kwargs: Any) -> Any:
    """Makes vLLM's configuration, or raises one of our errors. Other processes get the method in JSON values."""
    if not isinstance(args.additional_config, dict) or KEY not in args.additional_config:
        return original(*more, **kwargs)
    choose_settings(args)
    config = original(*more, **kwargs)
    found = served(args.additional_config[KEY], *_shape(config))
    check_config(config, found.allow_untested)
    hooks.capture_no_decodes(config)
    config.additional_config = {**config.additional_config, KEY: found.as_json()}
    hooks.logger(__name__).info("visipruner: %s %s", found.pruner.name, found.pruner.settings())
    return config


def _make_runner(original: Callable[..., Any], runner: Any, vllm_config: Any, *more: Any, **kwargs: Any) -> None:
    original(vllm_config, *more, **kwargs)
    asked = _asked(vllm_config)
    if asked is not None:
        worker = runner.visipruner = Worker(runner, asked, *_shape(vllm_config))
        worker.begin()
        hooks.report_with_output(runner, KEY, worker.report)


def _make_scheduler(original: Callable[..., Any], scheduler: Any, vllm_config: Any, *more: Any, **kwargs: Any) -> None:
    original(vllm_config, *more, **kwargs)
    if _asked(vllm_config) is not None:
        numbers = Numbers()

        def take(report: Report) -> Sequence[str]:
            numbers.add(report.numbers)
            for free in report.free:
                forward.give_back(scheduler, free)
            return report.failed

        hooks.take_reports(scheduler, KEY, take)
        hooks.send_with_statistics(scheduler, KEY, numbers.take)


def _asked(config: Any) -> Served | None:
    """What a configuration that another process made asks for, or None where that is nothing of ours."""
    asked = config.additional_config.get(KEY) if isinstance(config.additional_config, dict) else None
    return None if asked is None else served(asked, *_shape(config))


def _shape(config: Any) -> tuple[int, bool]:
    """How many layers the decoder has, and whether rows are numbered one after another."""
    model = config.model_config
    return int(model.get_total_num_hidden_layers()), not model.uses_mrope


# Of all engines that this process serves.
totals: Counter[str] = Counter()
_logged: Counter[str] = Counter()


def _record(original: Callable[..., Any], _: Any, scheduler_stats: Any, *more: Any, **kw: Any) -> Any:
    """Takes our numbers out of the statistics on their way to vLLM's loggers."""
    for name, number in hooks.received(scheduler_stats, KEY).items():
        is_state = name == REMEMBERED
        hooks.count_for_prometheus(f"{KEY}_{name}", MEANING[name], number, is_state)
        totals[name] += 0 if is_state else number
    return original(scheduler_stats, *more, **kw)


def _log(original: Callable[..., Any], _: Any) -> Any:
    result = original()
    if totals != _logged:
        _logged.update(totals - _logged)
        hooks.logger(__name__).info(sentence(totals))
    return result
