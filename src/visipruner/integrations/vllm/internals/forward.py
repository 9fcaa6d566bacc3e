"""What the plug-in reads of one forward's requests, and the attention metadata that it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visipruner.contract.layout import square
from visipruner.integrations.vllm.internals.model import attention_of, decoder_of, layers_of
from visipruner.integrations.vllm.request import Picture
from visipruner.integrations.vllm.step import Step


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
