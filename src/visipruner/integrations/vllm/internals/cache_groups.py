"""Caches of deep layers in groups of their own, whose blocks go back once a prompt is read.

vLLM gives the layers of one cache group the same blocks; as the first layers need all rows, none is free in a single
group. Layers whose specs are of unlike classes come into groups of their own. A prompt takes its blocks in every group;
once its rows left, the worker drops the end of the block list in groups that hold fewer rows, and tells the scheduler,
which frees those blocks and from then on counts the rows that are left.

These classes must derive from vLLM's own. A process registers them as it imports this file, which it does when it
reads a spec that another process made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

MOST = 8


@dataclass(frozen=True, kw_only=True)
class GroupSpec(FullAttentionSpec):  # type: ignore[misc]
    """Of the layers of one group."""

    @classmethod
    def merge(cls, specs: Sequence[Any]) -> Any:
        if any(type(spec) is not cls for spec in specs):
            raise AssertionError("layers of unlike groups")  # so vLLM learns that they cannot be one
        return specs[0]

    @classmethod
    def of(cls, spec: Any) -> Any:
        """The same cache as vLLM's own `spec`, in this group."""
        return cls(**{each.name: getattr(spec, each.name) for each in fields(FullAttentionSpec)})


class GroupManager(FullAttentionManager):  # type: ignore[misc]
    """Counts rows that are no longer held, by request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gone: dict[str, int] = {}

    def get_num_blocks_to_allocate(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> int:
        held = num_tokens - self._gone.get(request_id, 0)
        return int(super().get_num_blocks_to_allocate(request_id, held, *args, **kwargs))

    def allocate_new_blocks(self, request_id: str, num_tokens: int, *args: Any, **kwargs: Any) -> Any:
        return super().allocate_new_blocks(request_id, num_tokens - self._gone.get(request_id, 0), *args, **kwargs)

    def pop_blocks_for_free(self, request_id: str) -> Any:
        self._gone.pop(request_id, None)
        return super().pop_blocks_for_free(request_id)

    def give_back(self, request_id: str, first: int, ids: Sequence[int], gone: int) -> None:
        """Frees the blocks `ids`, from the `first` on; `gone` rows are no longer held. Nothing happens where the
        request holds other blocks by now, for it was preempted."""
        blocks = self.req_to_blocks.get(request_id, [])
        free = blocks[first : first + len(ids)]
        if [block.block_id for block in free] == list(ids):
            del blocks[first : first + len(ids)]
            self._gone[request_id] = gone
            self.block_pool.free_blocks(reversed(free))


def _group(number: int) -> type[GroupSpec]:
    """A class of its own for every group, under a name by which other processes find it."""
    name = f"Group{number}Spec"
    made = type(name, (GroupSpec,), {"__module__": __name__, "__qualname__": name})
    globals()[name] = made
    return dataclass(frozen=True, kw_only=True)(made)


KVCacheSpecRegistry._ensure_registered()
GROUPS = [_group(number) for number in range(MOST)]
for _each in GROUPS:
    KVCacheSpecRegistry.register(_each, GroupManager, _each)
