"""Where the plug-in gets into vLLM: its configuration, runner (V1), scheduler and statistics."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

from torch import nn

from visipruner.integrations.vllm.internals.model import decoder_of

# Versions that the tests ran with.
TRIED = ("0.32.0",)


def version() -> str:
    """vLLM's version without what a builder adds to it."""
    import vllm

    return str(vllm.__version__).partition("+")[0]


def logger(name: str) -> Any:
    """A logger that speaks in vLLM's log."""
    from vllm.logger import init_logger

    return init_logger(f"vllm.{name}")


def _wrapped(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, "by_visipruner", False):
        return  # vLLM may load a plug-in more than once

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(partial_of(original, self), self, *args, **kwargs)

    method.by_visipruner = True  # type: ignore[attr-defined]
    setattr(owner, name, method)


def partial_of(function: Callable[..., Any], owner: Any) -> Callable[..., Any]:
    """`function` as a method of `owner`."""
    return lambda *args, **kwargs: function(owner, *args, **kwargs)


def around_engine_config(around: Callable[..., Any]) -> None:
    """`around(original, engine_args, ...)` makes the configuration, in the process that the user started."""
    from vllm.engine.arg_utils import EngineArgs

    _wrapped(EngineArgs, "create_engine_config", around)


def around_runner(around: Callable[..., Any]) -> None:
    """`around(original, runner, vllm_config, ...)` makes the object that runs the model (V1)."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    _wrapped(GPUModelRunner, "__init__", around)


def around_scheduler(around: Callable[..., Any]) -> None:
    """`around(original, scheduler, vllm_config, ...)` makes the scheduler."""
    from vllm.v1.core.sched.scheduler import Scheduler

    _wrapped(Scheduler, "__init__", around)


def around_statistics(record: Callable[..., Any], log: Callable[..., Any]) -> None:
    """`record(original, manager, scheduler_stats, ...)` and `log(original, manager)` run in the process that serves."""
    from vllm.v1.metrics.loggers import StatLoggerManager

    _wrapped(StatLoggerManager, "record", record)
    _wrapped(StatLoggerManager, "log", log)


def capture_no_decodes(config: Any) -> None:
    """CUDA graphs of whole decodes would replay without our metadata; those between the attentions do no harm."""
    from vllm.config import CUDAGraphMode

    compilation = config.compilation_config
    if compilation.cudagraph_mode is not None and compilation.cudagraph_mode.has_full_cudagraphs():
        has_pieces = compilation.cudagraph_mode.has_piecewise_cudagraphs()
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE if has_pieces else CUDAGraphMode.NONE


def run_model_through(runner: Any, run: Callable[..., Any]) -> None:
    """From now on `run(original, ...)` runs the model, within the forward's context."""
    original = runner._model_forward
    runner._model_forward = lambda *args, **kwargs: run(original, *args, **kwargs)


def tell_finished(runner: Any, forget: Callable[[Sequence[str]], None]) -> None:
    """From now on `forget` learns of requests that are over, whatever ended them."""
    original = runner._update_states

    def update(scheduler_output: Any) -> Any:
        forget(scheduler_output.finished_req_ids)
        return original(scheduler_output)

    runner._update_states = update


def check_once_loaded(runner: Any, check: Callable[[nn.Module], None]) -> None:
    """`check` gets the decoder as soon as the model is there."""
    original = runner.load_model

    def load(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        check(decoder_of(runner))

    runner.load_model = load


def group_caches(runner: Any, firsts: Sequence[int]) -> None:
    """From now on the caches of the layers that begin with one of `firsts` are a group of their own."""
    original = runner.get_kv_cache_spec

    def specs() -> Any:
        from vllm.model_executor.models.utils import extract_layer_index

        from visipruner.integrations.vllm.internals.cache_groups import GROUPS

        return {name: GROUPS[bisect(firsts, extract_layer_index(name))].of(spec) for name, spec in original().items()}

    runner.get_kv_cache_spec = specs


def report_with_output(runner: Any, key: str, take: Callable[[], Any]) -> None:
    """From now on what `take` gives (None for nothing) travels with a step's output to the scheduler's process."""
    from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

    original = runner.sample_tokens

    def sample(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        output = getattr(result, "_model_runner_output", result)  # within what is still being copied from a GPU
        is_of_a_step = isinstance(output, ModelRunnerOutput) and output is not EMPTY_MODEL_RUNNER_OUTPUT
        if is_of_a_step and (found := take()) is not None:
            setattr(output, key, found)
        return result

    runner.sample_tokens = sample


def take_reports(scheduler: Any, key: str, take: Callable[[Any], Sequence[str]]) -> None:
    """From now on `take` gets what came with outputs, and names requests to end with an error, as those end whose
    grammar does not compile."""
    original = scheduler.update_from_output

    def update(scheduler_output: Any, output: Any) -> Any:
        report = getattr(output, key, None)
        for name in take(report) if report is not None else ():
            scheduler.grammar_compile_error_reqs.add(name)
            if output.sampled_token_ids:
                output.sampled_token_ids[output.req_id_to_index[name]] = []
        return original(scheduler_output, output)

    scheduler.update_from_output = update


def send_with_statistics(scheduler: Any, key: str, take: Callable[[], dict[str, int]]) -> None:
    """From now on what `take` gives travels with the scheduler's statistics to the process that serves.

    It rides where a KV connector's statistics would be; connectors are refused.
    """
    original = scheduler.make_stats

    def make_stats(*args: Any, **kwargs: Any) -> Any:
        stats = original(*args, **kwargs)
        found = take() if stats is not None else {}
        if found:
            stats.kv_connector_stats = {key: found}
        return stats

    scheduler.make_stats = make_stats


def received(stats: Any, key: str) -> dict[str, int]:
    """What came with the statistics, which no longer hold it."""
    carried = getattr(stats, "kv_connector_stats", None)
    if not carried or key not in carried:
        return {}
    stats.kv_connector_stats = None
    return dict(carried[key])


def count_for_prometheus(name: str, meaning: str, count: int, is_state: bool) -> None:
    """Adds to a counter of the server's `/metrics`, or says what a state is now."""
    if is_state:
        _prometheus("Gauge", name, meaning).set(count)
    else:
        _prometheus("Counter", name, meaning).inc(count)


@cache
def _prometheus(kind: str, name: str, meaning: str) -> Any:
    import prometheus_client

    return getattr(prometheus_client, kind)(name, meaning)
