"""Pure gathers: some rows of a batch, packed one example after another without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from visipruner.contract.layout import uploaded


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a host tensor `[batch, seq, ...]`, example by example; how many, is known without asking a device.

    A packed tensor holds them as `[1, sum(lengths), ...]`: no example pays for another's padding.

    Attributes:
        index: per example `[n_b]` long, ascending rows of the host tensor.
        seq: length of the host tensor.
    """

    index: tuple[Tensor, ...]
    seq: int

    def to(self, device: torch.device) -> Rows:
        """The same with its tensors on `device`."""
        return Rows(tuple(rows.to(device) for rows in self.index), self.seq)

    @cached_property
    def lengths(self) -> list[int]:
        return [rows.numel() for rows in self.index]

    @cached_property
    def total(self) -> int:
        """Rows of all examples together."""
        return sum(self.lengths)

    @cached_property
    def flat(self) -> Tensor:
        """`[sum(lengths)]` long, ascending rows of the host tensor flattened to `[batch * seq, ...]`."""
        if len(self.index) == 1:
            return self.index[0]
        first = np.repeat(np.arange(len(self.index)) * self.seq, self.lengths)
        return torch.cat(self.index) + uploaded(first, self.index[0].device)

    @cached_property
    def is_whole(self) -> bool:
        """True when packing changes nothing: one example with all its rows."""
        return len(self.index) == 1 and self.lengths[0] == self.seq

    @cached_property
    def spans(self) -> list[slice]:
        """Where each example lies in a packed tensor."""
        ends = list(accumulate(self.lengths))
        return [slice(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def gather(self, tensor: Tensor, seq_dim: int) -> Tensor:
        """Packs a host tensor whose batch dimension lies just before `seq_dim` (negative); a batch of 1 is shared."""
        if self.is_whole:
            return tensor
        batch_dim = tensor.ndim + seq_dim - 1
        if len(self.index) == 1:
            return tensor.index_select(seq_dim, self.index[0])
        if tensor.shape[batch_dim] == 1:
            return tensor.index_select(seq_dim, torch.cat(self.index))
        flat = tensor.flatten(batch_dim, batch_dim + 1)
        return flat.index_select(batch_dim, self.flat).unsqueeze(batch_dim)

    def scatter(self, packed: Tensor) -> Tensor:
        """`[1, sum(lengths), d]` back to `[batch, seq, d]`; rows that are not among these are zero."""
        if self.is_whole:
            return packed
        host = packed.new_zeros(len(self.index) * self.seq, packed.shape[-1])
        return host.index_copy(0, self.flat, packed[0]).view(len(self.index), self.seq, -1)

    def within(self, outer: Rows) -> Tensor:
        """Positions of these rows in a tensor packed by `outer`, of which they are a part; `[sum(lengths)]` long."""
        return torch.searchsorted(outer.flat, self.flat)
