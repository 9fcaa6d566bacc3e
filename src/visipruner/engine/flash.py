"""Attention by kernels of variable length (flash attention): packed rows are what they want, and they take no mask.

Every edge set is said by causality and lengths. Text rows among themselves are causal; visual rows of one image see the
same text before them; where text rows see visual keys too, all rows run causally and the wanted ones are taken. What
cannot be said so is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.layout import uploaded
from visipruner.contract.routing import Routing
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.edges import Edges, Groups, Lengths, PackedExample, is_routed, members_of, run_kernel
from visipruner.engine.masks import HostMask
from visipruner.engine.rows import Rows
from visipruner.errors import UnsupportedModelError


def lengths(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Lengths:
    """How many queries and keys each sequence of a packed call has."""
    ends = [uploaded(np.cumsum([0, *part], dtype=np.int32), device) for part in (queries, keys)]
    return Lengths(ends[0], ends[1], max(queries), max(keys))


class PackedRows:
    """The plain rows of all examples, unlike in length, in one call. Attributes: `longest`, rows of the longest."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self.longest = rows, max(rows.lengths)
        self._lengths = lengths(rows.lengths, rows.lengths, rows.flat.device)

    def pairs(self, example: int) -> int:
        """(query, key) pairs that the kernel computes for an example, per head; the masked half counts."""
        return self._rows.lengths[example] ** 2

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """Of packed `[1, heads, n, head_dim]` queries, keys and values, `[1, n, heads, head_dim]`."""
        return run_kernel(kernel, module, qkv, None, True, kwargs, self._lengths)


def check_window(kwargs: Any, mask: HostMask) -> None:
    """Raises UnsupportedModelError where the kernel would count a sliding window in rows that are no neighbours."""
    window = kwargs.get("sliding_window")
    if window is not None and window < mask.past + mask.seq:
        raise UnsupportedModelError(
            f"The prompt is longer than this model's sliding window of {window} rows, which flash attention would "
            "count without the rows that left; load the model with attn_implementation='sdpa'."
        )


def plan(routing: Routing, part: PackedExample) -> Groups:
    """How an example's rows attend in a layer of this routing. Raises UnsupportedModelError for what takes a mask."""
    if part.bias is not None or (part.others is not None and routing.freezes_visual):
        raise UnsupportedModelError(
            "Flash attention takes no mask, which these settings need (an attention sink of its own, visual rows that "
            "are frozen, or a model that learns to prune); load the model with attn_implementation='sdpa'."
        )
    count, device = part.rows.numel(), part.rows.device
    before = 0 if part.others is None else part.others.columns.numel()
    if not count:
        return Groups([])
    if not is_routed(routing, part):
        whole = lengths([count], [before + count], device)
        return Groups([Edges("attend", None, None, None, True, None, count * (before + count), lengths=whole)])
    return Groups(_routed(routing, part, before))


def _routed(routing: Routing, part: PackedExample, before: int) -> list[Edges]:
    rows, is_visual = part.on_host()
    device, found = part.rows.device, []
    older = np.flatnonzero(~part.others.visual.cpu().numpy()) if part.others is not None else np.arange(0)
    text = np.concatenate([older, before + np.flatnonzero(~is_visual)])
    for members, edge in members_of(routing, part, rows, is_visual).values():
        where = uploaded(members, device)
        if edge != "cut":  # all rows run, and those of the group are taken
            size = len(rows)
            whole = lengths([size], [before + size], device)
            pairs = size * (before + size)
            found.append(Edges(edge, where, None, None, True, None, pairs, lengths=whole, takes_members=True))
            continue
        if not is_visual[members[0]]:
            keys = uploaded(text, device)
            sizes = lengths([len(members)], [len(text)], device)
            found.append(Edges(edge, where, keys, None, True, None, len(members) * len(text), lengths=sizes))
            continue
        seen = len(older) + np.searchsorted(rows[~is_visual], rows[members])
        for number in np.unique(seen):  # visual rows between the same words see the same text
            mine = members[seen == number]
            keys, some = uploaded(text[:number], device), uploaded(mine, device)
            sizes = lengths([len(mine)], [max(int(number), 1)], device)
            found.append(Edges(edge, some, keys, None, False, None, len(mine) * int(number), lengths=sizes))
    return found
