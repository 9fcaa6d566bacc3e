"""The rows that one layer brings to its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from visipruner.contract.layout import uploaded
from visipruner.engine.edges import OtherKeys
from visipruner.engine.rows import Rows

PADDING = -1


@dataclass(frozen=True, eq=False)
class Incoming:
    """What the next `update` brings: the packed new rows of every example. Layers with the same rows share one.

    Attributes:
        rows: the new rows, packed as the keys `[1, kv_heads, sum(lengths), head_dim]` are. past: logical rows before.
        logical: rows the host thinks it appended, padding and dropped rows included.
        stored: `[sum]` long, places of the new rows that later tokens can need, or None for all; `counts`: how many of
            them each example has.
        transform: applied to the packed new values before they are stored.
        bias: per example `[n_b]` float added to the logits of its new rows, or None.
        beside: per example keys of rows that are not among the new ones, or None; they are stored too.
    """

    rows: Rows
    past: int
    logical: int
    stored: Tensor | None = None
    counts: Sequence[int] = ()
    transform: Callable[[Tensor], Tensor] | None = None
    bias: Sequence[Tensor] | None = None
    beside: Sequence[OtherKeys | None] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but rows is stored, all or some of them."""
        return self.bias is None and self.beside is None

    def kept(self, example: int) -> int:
        """Rows of an example that are stored."""
        beside = None if self.beside is None else self.beside[example]
        return self._counts[example] + (0 if beside is None else beside.columns.numel())

    @property
    def _counts(self) -> Sequence[int]:
        return self.rows.lengths if self.stored is None else self.counts

    @cached_property
    def columns(self) -> list[Tensor]:
        """Per example `[n_b]` long, logical columns of its new rows."""
        return [index + self.past if self.past else index for index in self.rows.index]

    @cached_property
    def places(self) -> list[Tensor] | None:
        """Per example `[k]` long, places of what is stored among its new rows, or None for all."""
        if self.stored is None:
            return None
        parts = torch.split(self.stored, list(self._counts))
        return [part - span.start for part, span in zip(parts, self.rows.spans, strict=True)]

    @cached_property
    def padded(self) -> tuple[Tensor | None, Tensor, bool]:
        """Of plain rows: their places among the packed ones, examples padded on the left (None: as they come), their
        logical columns `[batch, longest]`, and whether any is PADDING."""
        columns = torch.cat(self.rows.index) if len(self.rows.index) > 1 else self.rows.index[0]
        columns = columns if self.stored is None else columns.index_select(0, self.stored)
        columns = columns + self.past if self.past else columns
        counts = np.array(self._counts)
        if len(counts) == 1:
            return self.stored, columns[None], False
        longest, ends, device = int(counts.max()), np.cumsum(counts)[:, None], columns.device
        order = ends - longest + np.arange(longest)
        is_padding = order < ends - counts[:, None]
        where = uploaded(np.where(is_padding, 0, order).flatten(), device)
        columns = columns.index_select(0, where).view(len(counts), longest)
        if is_padding.any():
            columns = columns.masked_fill(uploaded(is_padding, device), PADDING)
        places = where if self.stored is None else self.stored.index_select(0, where)
        return places, columns, bool(is_padding.any())


def pad_left(tensor: Tensor, length: int, dim: int, value: int = 0) -> Tensor:
    """`tensor` with `value` before it along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    padding = [0, 0] * (-dim - 1) + [missing, 0]
    return torch.nn.functional.pad(tensor, padding, value=value)
