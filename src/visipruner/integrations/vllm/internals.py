"""All of vLLM's insides that this plug-in reaches into, each behind a name of ours (but for `cache_groups`).

`tests/vllm/test_internals.py` looks for every one of them, so that a new version of vLLM fails there first.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visipruner.contract.layout import square
from visipruner.integrations.vllm.request import Picture
from visipruner.integrations.vllm.step import QKV, Step

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


# ---- where we get in ------------------------------------------------------------------------------------------------


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


# ---- the runner (V1) ------------------------------------------------------------------------------------------------


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


def names_of(runner: Any) -> list[str]:
    """Ids of the requests in this forward."""
    return list(runner.input_batch.req_ids)


def batch_of(runner: Any) -> tuple[list[int], list[int]]:
    """Rows that each request of this forward had run before, rows that each brings."""
    batch = runner.input_batch
    count = batch.num_reqs
    starts = runner.query_start_loc.np[: count + 1]
    return batch.num_computed_tokens_cpu[:count].tolist(), np.diff(starts).tolist()


def prompt_of(runner: Any, name: str) -> tuple[list[Picture], int]:
    """A request's images, and the length of its prompt."""
    state = runner.requests[name]
    images = [_picture(runner, part) for part in state.mm_features if part.modality == "image"]
    return images, int(state.num_prompt_tokens)


def wants_every_row(runner: Any, name: str) -> bool:
    """Whether a request asks for the log-probabilities of its prompt."""
    return name in runner.num_prompt_logprobs


def _picture(runner: Any, feature: Any) -> Picture:
    """An image's rows; their grid is what the processor says (Qwen-VL), or a square."""
    picture = Picture(feature.mm_position.extract_embeds_range(), None)
    given = feature.data.get("image_grid_thw") if feature.data is not None else None
    if given is None:
        return replace(picture, grid=square(picture.count))
    merged = runner.model_config.hf_config.vision_config.spatial_merge_size
    _, height, width = (int(each) for each in given.data.flatten())
    return replace(picture, grid=(height // merged, width // merged))


def group_caches(runner: Any, firsts: Sequence[int]) -> None:
    """From now on the caches of the layers that begin with one of `firsts` are a group of their own."""
    original = runner.get_kv_cache_spec

    def specs() -> Any:
        from vllm.model_executor.models.utils import extract_layer_index

        from visipruner.integrations.vllm.cache_groups import GROUPS

        return {name: GROUPS[bisect(firsts, extract_layer_index(name))].of(spec) for name, spec in original().items()}

    runner.get_kv_cache_spec = specs


@dataclass(frozen=True)
class FreeBlocks:
    """Blocks of a request that a group no longer needs: their ids, from the `first` of its list on, and how many of its
    rows the group does not hold."""

    name: str
    group: int
    first: int
    ids: list[int]
    gone: int


def shorten(runner: Any, name: str, gone: NDArray[np.int32], rows: int) -> list[FreeBlocks]:
    """Drops the end of a request's block lists: of the `rows` that it ran, layers hold all but `gone` `[layers]`."""
    places = {attention_of(each).layer_name: at for at, each in enumerate(layers_of(decoder_of(runner)))}
    lists, at, found = runner.requests[name].block_ids, runner.input_batch.req_id_to_index[name], []
    for group, spec in enumerate(runner.kv_cache_config.kv_cache_groups):
        least = int(min(gone[places[layer]] for layer in spec.layer_names))
        table, blocks = runner.input_batch.block_table[group], lists[group]
        needed = -(-(rows - least) // table.block_size)
        if table.block_size == spec.kv_cache_spec.block_size and needed < len(blocks):
            found.append(FreeBlocks(name, group, needed, blocks[needed:], least))
            del blocks[needed:]
            table.block_table.np[at, needed : table.num_blocks_per_row[at]] = 0
            table.num_blocks_per_row[at] = needed
    return found


def give_back(scheduler: Any, free: FreeBlocks) -> None:
    """The same on the scheduler's side."""
    manager = scheduler.kv_cache_manager.coordinator.single_type_managers[free.group]
    manager.give_back(free.name, free.first, free.ids, free.gone)


# ---- the model ------------------------------------------------------------------------------------------------------


def decoder_of(runner: Any) -> nn.Module:
    """The stack of text layers."""
    model = runner.get_model()
    return model.get_language_model().model  # type: ignore[no-any-return]


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    return list(decoder.layers)  # type: ignore[arg-type]


def attention_of(layer: nn.Module) -> nn.Module:
    return layer.self_attn.attn  # type: ignore[union-attr, return-value]


def backend_of(layer: nn.Module) -> str:
    """The name of what computes a layer's attention."""
    return str(attention_of(layer).attn_backend.get_name())  # type: ignore[operator, union-attr]


def is_windowed(layer: nn.Module) -> bool:
    """Whether a layer's attention sees only so many keys back."""
    return attention_of(layer).sliding_window is not None


def scaling_of(attention: Any) -> tuple[float, float | None]:
    """The factor of the logits, and their softcap."""
    return float(attention.impl.scale), float(attention.impl.logits_soft_cap or 0) or None


def by_head(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> QKV:
    """`[rows, heads, head_dim]` each."""
    kv_heads = attention.num_kv_heads
    return (
        q.view(-1, attention.num_heads, attention.head_size),
        k.view(-1, kv_heads, attention.head_size),
        v.view(-1, kv_heads, attention.head_size_v),
    )


def run_attention(layer: Any, positions: Tensor, states: Tensor, until: type[Exception]) -> None:
    """Runs a layer's norm and attention on some rows until `until` is raised in it."""
    try:
        layer.self_attn(positions=positions, hidden_states=layer.input_layernorm(states))
    except until:
        return
    raise AssertionError("the attention was not called")


def rows_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many rows a decoder is called with."""
    return int(_positions(args, kwargs).shape[-1])


def device_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    return _positions(args, kwargs).device


def _positions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = kwargs["positions"] if "positions" in kwargs else args[1]
    return found


# ---- one forward ----------------------------------------------------------------------------------------------------


def has_attention() -> bool:
    """Whether this forward reads caches; trial runs at the start do not."""
    from vllm.forward_context import get_forward_context

    metadata = get_forward_context().attn_metadata
    return isinstance(metadata, dict) and bool(metadata)


def run_uncompiled() -> None:
    """This forward's rows will not fit what was compiled or captured."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    context = get_forward_context()
    context.skip_compiled = True
    context.cudagraph_runtime_mode = CUDAGraphMode.NONE


def places_of(runner: Any) -> list[tuple[str, int]]:
    """Of each layer: the name of its attention, and the number of its cache group."""
    groups = runner.kv_cache_config.kv_cache_groups
    of_name = {name: number for number, group in enumerate(groups) for name in group.layer_names}
    names = [str(attention_of(layer).layer_name) for layer in layers_of(decoder_of(runner))]
    return [(name, of_name[name]) for name in names]


class Metadata:
    """Attention metadata of one forward, for layers whose rows or caches are not those of the whole prompt.

    The rows that a layer holds are packed at the front of the blocks that vLLM gave the request: what is generated
    follows at once, and the layer's length is the request's less what is gone.
    """

    def __init__(self, runner: Any, places: Sequence[tuple[str, int]], step: Step, rows: int) -> None:
        """`places`: of `places_of`. `rows`: how many the forward was called with, padding included."""
        from vllm.forward_context import get_forward_context

        self._runner, self._step, self._rows = runner, step, rows
        self._context = get_forward_context()
        self._context.attn_metadata = dict(self._context.attn_metadata)
        self._context.slot_mapping = dict(self._context.slot_mapping)
        self._places = places
        self._built: dict[Any, tuple[Any, Tensor]] = {}

    def install(self, layer: int) -> None:
        """Gives `layer` what fits its rows; where nothing is gone vLLM's own does."""
        step, gone = self._step, self._step.gone[:, layer]
        is_padded = step.rows is not None and self._rows != int(step.lengths.sum())
        if not (gone.any() or is_padded):
            return
        name, group = self._places[layer]
        key = (group, gone.tobytes(), step.present.tobytes())
        if key not in self._built:
            self._built[key] = self._build(gone.astype(np.int64), group)
        metadata, slots = self._built[key]
        self._context.attn_metadata[name] = metadata
        self._context.slot_mapping[name] = slots

    def _build(self, gone: NDArray[np.int64], group: int) -> tuple[Any, Tensor]:
        """What attention is told, and each row's place in the cache."""
        from vllm.v1.attention.backend import CommonAttentionMetadata

        step, runner = self._step, self._runner
        count, lengths = len(step.ids), step.present
        total = step.ran + step.lengths - gone
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        table = runner.input_batch.block_table[group]
        slots = self._slots(table, lengths, total - lengths)
        starts_cpu, total_cpu = torch.from_numpy(starts), torch.from_numpy(total.astype(np.int32))
        prompts = np.array([runner.requests[name].num_prompt_tokens for name in step.ids])
        common = CommonAttentionMetadata(
            query_start_loc=starts_cpu.to(runner.device),
            query_start_loc_cpu=starts_cpu,
            seq_lens=total_cpu.to(runner.device),
            seq_lens_cpu_upper_bound=total_cpu,
            num_reqs=count,
            num_actual_tokens=int(starts[-1]),
            max_query_len=int(lengths.max()),
            max_seq_len=int(total.max()),
            block_table_tensor=table.get_device_tensor(count),
            slot_mapping=slots,
            causal=True,
            is_prefilling=torch.from_numpy(step.ran < prompts),
        )
        return runner.attn_groups[group][0].build_metadata(common), slots

    def _slots(self, table: Any, lengths: NDArray[np.int64], before: NDArray[np.int64]) -> Tensor:
        """Places of this forward's rows, the first of a request after the `before` that its cache holds."""
        which = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + before[which]
        blocks = table.block_table.np[which, place // table.block_size].astype(np.int64)
        slots = blocks * table.block_size + place % table.block_size
        if self._step.rows is None:
            slots = np.pad(slots, (0, self._rows - len(slots)), constant_values=-1)
        return torch.from_numpy(slots).to(self._runner.device)


# ---- scheduler and statistics ---------------------------------------------------------------------------------------


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
