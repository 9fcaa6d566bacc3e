"""Attention by kernels of variable length (flash attention): packed rows are what they want, and they take no mask.

Every edge set is said by causality and lengths. Text rows among themselves are causal; visual rows of one image see the
same text before them; where text rows see visual keys too, all rows run causally and the wanted ones are taken. Each of
these is one call for all examples. What cannot be said so is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.layout import uploaded
from visipruner.contract.routing import Edge, Routing
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.edges import Edges, Groups, Lengths, PackedExample, is_routed, members_of
from visipruner.engine.masks import HostMask
from visipruner.engine.rows import Rows
from visipruner.errors import UnsupportedModelError


def check_window(kwargs: Any, mask: HostMask) -> None:
    """Raises UnsupportedModelError where the kernel would count a sliding window in rows that are no neighbours."""
    window = kwargs.get("sliding_window")
    if window is not None and window < mask.past + mask.seq:
        raise UnsupportedModelError(
            f"The prompt is longer than this model's sliding window of {window} rows, which flash attention would "
            "count without the rows that left; load the model with attn_implementation='sdpa'."
        )


# A sequence of a call: its example, and the places of its queries and of its keys among the packed ones.
Run = tuple[int, np.ndarray, np.ndarray]


class PackedRows:
    """How the packed rows of all examples, unlike in length, attend in a layer of this routing: one call for each group
    of them. Raises UnsupportedModelError for what takes a mask."""

    def __init__(self, routing: Routing, parts: Sequence[PackedExample], rows: Rows) -> None:
        for part in parts:
            _check(routing, part)
        self._parts, self._spans, whole = parts, rows.spans, _whole(parts)
        self._visual, self._counts = rows.flat[:0], [0]
        calls: list[_Call] = []
        if any(is_routed(routing, part) for part in parts):
            calls = _routed(routing, parts, whole)
            starts = np.cumsum([0, *(len(keys) for _, _, keys in whole)]).tolist()
            visual = [part.visual_keys() + start for part, start in zip(parts, starts, strict=False)]
            self._visual, self._counts = torch.cat(visual), [places.numel() for places in visual]
        elif rows.total:
            calls = [_Call("attend", whole, taken=np.arange(rows.total))]
        self._groups = Groups([call.edges(rows) for call in calls])
        self._pairs = [sum(call.pairs(example) for call in calls) for example in range(len(parts))]

    def pairs(self, example: int) -> int:
        """(query, key) pairs that the kernel computes for an example, per head; the masked half counts."""
        return self._pairs[example]

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """Of packed `[1, heads, n, head_dim]` queries, keys and values, `[1, n, heads, head_dim]`."""
        q, k, v = qkv
        if any(part.others is not None for part in self._parts):
            sides = [
                part.all_keys(k[:, :, span], v[:, :, span]) for part, span in zip(self._parts, self._spans, strict=True)
            ]
            k, v = (torch.cat(side, dim=2) for side in zip(*sides, strict=True))
        return self._groups.attend(kernel, module, (q, k, v), self._visual, kwargs, self._counts)


@dataclass(frozen=True, eq=False)
class _Call:
    """A call of the kernel. taken: all rows run, and those at these places are taken of what comes out; None where
    only the sequences' own run."""

    edge: Edge
    runs: Sequence[Run]
    is_causal: bool = True
    taken: np.ndarray | None = None

    def pairs(self, example: int) -> int:
        return sum(len(queries) * len(keys) for number, queries, keys in self.runs if number == example)

    def edges(self, rows: Rows) -> Edges:
        """The same for a kernel."""
        device, sides = rows.flat.device, ([run[1] for run in self.runs], [run[2] for run in self.runs])
        sizes = [[len(part) for part in side] for side in sides]
        ends = [uploaded(np.cumsum([0, *part], dtype=np.int32), device) for part in sizes]
        lengths = Lengths(ends[0], ends[1], max(sizes[0]), max(sizes[1]))
        pairs = sum(queries * keys for queries, keys in zip(*sizes, strict=True))
        if self.taken is None:
            members, keys = (uploaded(np.concatenate(side), device) for side in sides)
            return Edges(self.edge, members, keys, None, self.is_causal, None, pairs, lengths)
        taken = None if len(self.taken) == rows.total else uploaded(self.taken, device)
        return Edges(self.edge, taken, None, None, self.is_causal, None, pairs, lengths, takes_members=True)


def _check(routing: Routing, part: PackedExample) -> None:
    if part.bias is not None or (part.others is not None and routing.freezes_visual):
        raise UnsupportedModelError(
            "Flash attention takes no mask, which these settings need (an attention sink of its own, visual rows that "
            "are frozen, or a model that learns to prune); load the model with attn_implementation='sdpa'."
        )


def _whole(parts: Sequence[PackedExample]) -> list[Run]:
    """All rows of every example, and all keys that there are for them."""
    found, row, key = [], 0, 0
    for part in parts:
        rows = part.rows.numel()
        keys = rows + (0 if part.others is None else part.others.columns.numel())
        found.append((part.example, np.arange(row, row + rows), np.arange(key, key + keys)))
        row, key = row + rows, key + keys
    return found


def _routed(routing: Routing, parts: Sequence[PackedExample], whole: Sequence[Run]) -> list[_Call]:
    """A call for each kind of rows that some example has."""
    taken: dict[Edge, list[np.ndarray]] = {}
    text: list[Run] = []
    images: list[Run] = []
    for part, (example, places, keys) in zip(parts, whole, strict=True):
        rows, is_visual = part.on_host()
        older, own = np.split(keys, [len(keys) - len(rows)])
        if part.others is not None:
            older = older[~part.others.visual.cpu().numpy()]
        seen = np.concatenate([older, own[~is_visual]])
        for members, edge in members_of(routing, part, rows, is_visual).values():
            if edge != "cut":
                taken.setdefault(edge, []).append(places[members])
            elif not is_visual[members[0]]:
                text.append((example, places[members], seen[: len(older) + len(members)]))
            else:  # visual rows between the same words see the same text
                before = len(older) + np.searchsorted(rows[~is_visual], rows[members])
                images += [(example, places[members[before == count]], seen[:count]) for count in np.unique(before)]
    calls = [_Call(edge, whole, taken=np.concatenate(mine)) for edge, mine in taken.items()]
    blind = [run for run in images if not len(run[2])]  # an image that opens the prompt sees nothing
    seeing = [run for run in images if len(run[2])]
    return calls + [
        _Call("cut", runs, is_causal) for runs, is_causal in ((text, True), (seeing, False), (blind, False)) if runs
    ]
