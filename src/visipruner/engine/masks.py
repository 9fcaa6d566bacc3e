"""What rows may see: the host's own mask, asked by row and logical column, and told to kernels as cheaply as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HostMask:
    """The mask a host layer was given for a forward of `seq` rows after `past` older ones.

    Attributes:
        tensor: `[batch or 1, 1, seq, columns]`, bool or additive, or None where plain causality says all. A sliding
            window's mask may start later than logical column 0.
    """

    tensor: Tensor | None
    past: int
    seq: int

    def allowed(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """`[len(rows), len(columns)]` bool: which logical columns host rows (counted within the forward) may see."""
        if self.tensor is None:
            return columns[None] <= rows[:, None] + self.past
        places = columns - (self.past + self.seq - self.tensor.shape[-1])
        inside = places >= 0
        mask = self.tensor[example if self.tensor.shape[0] > 1 else 0]
        return is_open(mask[0, rows][:, places.clamp(min=0)]) & inside


def is_open(mask: Tensor) -> Tensor:
    """Bool from a bool or an additive mask."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def kernel_mask(allowed: Tensor, bias: Tensor | None, eager: bool, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """The cheapest (mask, is_causal) that tells a kernel the edges `allowed`, `[queries, keys]` bool.

    `bias`, `[keys]`, is added to the logits. Eager kernels need an additive mask always; the others run their fast
    paths on None. The mask returned is `[1, 1, queries, keys]`.
    """
    lowest = torch.finfo(dtype).min
    if bias is not None:
        return torch.where(allowed, bias.to(dtype), lowest)[None, None], False
    if eager:
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), lowest)[None, None], False
    queries, keys = allowed.shape
    if queries > 1 and queries == keys and torch.equal(allowed, torch.ones_like(allowed).tril()):
        return None, True
    return (None, False) if bool(allowed.all()) else (allowed[None, None], False)
