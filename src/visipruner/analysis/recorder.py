"""Writes down what passes through a dense model's layers: states, queries, keys, values, masks; nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visipruner.engine.arguments import seq_dim
from visipruner.engine.masks import HostMask

# Arguments that a layer is not given again: the cache is replaced by recorded keys and the mask by its meaning.
_DROPPED = ("attention_mask", "past_key_values", "past_key_value", "use_cache", "cache_position")


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


def allowed_edges(masks: list[Tensor | None], lengths: list[int], starts: list[int]) -> Tensor:
    """`[n, n]` bool: which row may see which, over all segments.

    Args:
        masks: the host's mask in each segment. lengths: its rows. starts: how many of the earlier rows it continues;
            rows between (an answer tried before) are not seen.
    """
    total = sum(lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    first = 0
    for mask, length, past in zip(masks, lengths, starts, strict=True):
        rows = torch.arange(length)
        host = HostMask(None if mask is None else mask.cpu(), past, length)
        seen = host.allowed(0, rows, torch.arange(past + length))
        allowed[first : first + length, :past] = seen[:, :past]
        allowed[first : first + length, first : first + length] = seen[:, past:]
        first += length
    return allowed
