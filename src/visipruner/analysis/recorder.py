"""Writes down what passes through a dense model's layers: states, queries, keys, values, masks; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from visipruner.analysis.reading import LayerStates
from visipruner.engine.calls import CACHE_NAMES, seq_dim
from visipruner.engine.masks import HostMask

# Arguments that a layer is not given again: the cache is replaced by recorded keys and the mask by its meaning.
_DROPPED = ("attention_mask", *CACHE_NAMES, "past_key_value", "use_cache", "cache_position")


@dataclass
class LayerRecord:
    """One layer over one or several forwards ("segments"), each continuing the one before.

    Attributes, with n rows in all: hidden `[n, d]` entering the layer; output `[n, d]` leaving it; queries
    `[heads, n, head_dim]`, keys and values `[kv_heads, n, head_dim]` after RoPE; arguments: what else the layer was
    given in its first forward; per_row: its per-row arguments, concatenated; masks: one `HostMask` a segment.
    """

    hidden: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    per_row: dict[str, list[Any]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    attention_arguments: dict[str, Any] = field(default_factory=dict)

    def enter(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Notes the layer's input and arguments of one forward."""
        first = not self.hidden
        self.hidden.append(hidden[0])
        for name, given in kwargs.items():
            if name in _DROPPED or name == "hidden_states":
                continue
            if given is not None and seq_dim(name) is not None:
                self.per_row.setdefault(name, []).append(given)
            elif first:
                self.arguments[name] = given

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> None:
        """Notes the new rows' queries, keys and values; older keys are those of earlier segments."""
        new = q.shape[-2]
        self.queries.append(q[0])
        self.keys.append(k[0, :, -new:])
        self.values.append(v[0, :, -new:])
        self.masks.append(mask)
        self.attention_arguments = dict(kwargs)

    def states(self, allowed: Tensor, per_row: dict[str, Any]) -> LayerStates:
        """All segments as one sequence."""
        queries = torch.cat(self.queries, dim=-2)
        scaling = self.attention_arguments.get("scaling")
        return LayerStates(
            hidden=torch.cat(self.hidden),
            queries=queries,
            keys=torch.cat(self.keys, dim=-2),
            values=torch.cat(self.values, dim=-2),
            allowed=allowed,
            scaling=queries.shape[-1] ** -0.5 if scaling is None else float(scaling),
            softcap=self.attention_arguments.get("softcap"),
            arguments=self.arguments,
            per_row=per_row,
        )


class Recording:
    """All layers over a prompt and the forwards that continue it, up to two different ways ("chains").

    Attributes:
        layers: one record a layer. lengths: rows of each segment.
        chain: per segment, which continuation it belongs to; the prompt is segment 0 and belongs to both.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerRecord() for _ in range(num_layers)]
        self.lengths: list[int] = []
        self.chain: list[int] = []

    def begin_segment(self, length: int) -> None:
        """A forward of `length` rows begins."""
        self.lengths.append(length)
        self.chain.append(0)

    def add_chain(self, other: Recording) -> None:
        """Appends what another recording of the same prompt has after the prompt."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for name in ("hidden", "output", "queries", "keys", "values", "masks"):
                getattr(mine, name).extend(getattr(theirs, name)[1:])
            for name, given in theirs.per_row.items():
                mine.per_row[name].extend(given[1:])
        self.lengths += other.lengths[1:]
        self.chain += [1] * (len(other.lengths) - 1)

    def states(self) -> tuple[list[LayerStates], Tensor]:
        """Each layer's segments as one sequence of n rows, and what leaves the last layer, `[n, d]`."""
        layers: list[LayerStates] = []
        shared: dict[tuple[int, ...], Any] = {}
        for record in self.layers:
            key = tuple(map(id, record.masks))
            if key not in shared:
                shared[key] = self._allowed(record.masks)
            per_row = {}
            for name, given in record.per_row.items():
                rows_key = tuple(map(id, given))
                if rows_key not in shared:
                    shared[rows_key] = _join_rows(given, seq_dim(name) or -2)
                per_row[name] = shared[rows_key]
            layers.append(record.states(shared[key], per_row))
        outputs = [torch.cat(record.output) for record in self.layers]
        for layer, (states, output) in enumerate(zip(layers[1:], outputs[:-1], strict=True)):
            if not torch.equal(states.hidden, output):  # the host itself adds features between layers
                layers[layer] = replace(layers[layer], added=states.hidden - output)
        return layers, outputs[-1]

    def _allowed(self, masks: list[Tensor | None]) -> Tensor:
        """`[n, n]` bool: which row may see which. A chain does not see the other one."""
        total = sum(self.lengths)
        allowed = torch.zeros(total, total, dtype=torch.bool)
        past = {chain: torch.arange(0) for chain in (0, 1)}
        first = 0
        for mask, length, chain in zip(masks, self.lengths, self.chain, strict=True):
            rows = torch.arange(first, first + length)
            before = past[chain]
            host = HostMask(None if mask is None else mask.cpu(), len(before), length)
            seen = host.allowed(0, torch.arange(length), torch.arange(len(before) + length))
            allowed[rows[:, None], torch.cat([before, rows])[None]] = seen
            past[chain] = torch.cat([before, rows])
            if first == 0:
                past[1] = rows
            first += length
        return allowed


def _join_rows(given: list[Any], dim: int) -> Any:
    if isinstance(given[0], Tensor):
        return torch.cat(given, dim=dim)
    return tuple(torch.cat(parts, dim=dim) for parts in zip(*given, strict=True))
