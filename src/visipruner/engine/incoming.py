"""The rows that one layer brings to its cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from visipruner.engine.edges import OtherKeys
from visipruner.engine.rows import Rows

PADDING = -1


@dataclass(frozen=True, eq=False)
class Incoming:
    """What the next `update` brings: the packed new rows of every example. Layers with the same rows share one.

    Attributes:
        rows: the new rows, packed as the keys `[1, kv_heads, sum(lengths), head_dim]` are. past: logical rows before.
        logical: rows the host thinks it appended, padding and dropped rows included.
        stored: per example, places `[k]` long of the new rows that later tokens can need, or None for all.
        transform: applied to each example's new values before they are stored.
        bias: per example `[n_b]` float added to the logits of its new rows, or None.
        beside: per example keys of rows that are not among the new ones, or None; they are stored too.
    """

    rows: Rows
    past: int
    logical: int
    stored: Sequence[Tensor] | None = None
    transform: Sequence[Callable[[Tensor], Tensor]] | None = None
    bias: Sequence[Tensor] | None = None
    beside: Sequence[OtherKeys | None] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether rows are stored as they come, all or some of them."""
        return self.transform is None and self.bias is None and self.beside is None

    def kept(self, example: int) -> int:
        """Rows of an example that are stored."""
        beside = None if self.beside is None else self.beside[example]
        mine = self.rows.lengths[example] if self.stored is None else self.stored[example].numel()
        return mine + (0 if beside is None else beside.columns.numel())

    @cached_property
    def columns(self) -> list[Tensor]:
        """Per example `[n_b]` long, logical columns of its new rows."""
        return [index + self.past if self.past else index for index in self.rows.index]

    @cached_property
    def padded(self) -> tuple[Tensor | None, Tensor, bool]:
        """Of plain rows: their places among the packed ones, examples padded on the left (None: as they come), their
        logical columns `[batch, longest]`, and whether any is PADDING."""
        stored = self.stored or [torch.arange(length, device=self.rows.flat.device) for length in self.rows.lengths]
        columns = self.columns if self.stored is None else [c[s] for c, s in zip(self.columns, stored, strict=True)]
        if len(columns) == 1:
            return (None if self.stored is None else stored[0]), columns[0][None], False
        longest = max(part.numel() for part in columns)
        starts = [span.start for span in self.rows.spans]
        places = [
            pad_left(part + start, longest, -1, min(start, self.rows.total - 1))
            for part, start in zip(stored, starts, strict=True)
        ]
        where = torch.stack([pad_left(part, longest, -1, PADDING) for part in columns])
        return torch.cat(places), where, any(part.numel() < longest for part in columns)


def pad_left(tensor: Tensor, length: int, dim: int, value: int = 0) -> Tensor:
    """`tensor` with `value` before it along `dim`, up to `length`."""
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    padding = [0, 0] * (-dim - 1) + [missing, 0]
    return torch.nn.functional.pad(tensor, padding, value=value)
