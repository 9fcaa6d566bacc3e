"""What rows may see: the host's own mask, asked by row and logical column, and told to kernels as cheaply as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visipruner.errors import UnsupportedModelError

# Additive masks close an edge with -inf, their type's lowest number, or some number below: old code has -10,000. What
# is above is a bias, and added as it is.
CLOSED = -1e4


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
        given, inside = self._given(example, rows, columns)
        return is_open(given) & inside

    def added(self, example: int, rows: Tensor, columns: Tensor) -> Tensor | None:
        """`[len(rows), len(columns)]` float: what the mask adds to the logits of open edges, or None for nothing."""
        if self.tensor is None or self.tensor.dtype == torch.bool:
            return None
        given, inside = self._given(example, rows, columns)
        added = torch.where(is_open(given) & inside, given, 0)
        return added if bool(added.any()) else None

    def seen(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """As `allowed`, or where the mask holds biases what it adds to the logits: float, -inf for closed edges."""
        allowed, added = self.allowed(example, rows, columns), self.added(example, rows, columns)
        return allowed if added is None else torch.where(allowed, added, float("-inf"))

    def _given(self, example: int, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The mask's entries for these edges, and which columns it has at all."""
        assert self.tensor is not None
        if self.tensor.shape[1] > 1:
            raise UnsupportedModelError(
                "An attention_mask with a map for each head cannot be followed while visual tokens are pruned; pass "
                "one of shape [batch, 1, queries, keys], or [batch, keys]."
            )
        places = columns - (self.past + self.seq - self.tensor.shape[-1])
        mask = self.tensor[example if self.tensor.shape[0] > 1 else 0]
        return mask[0, rows][:, places.clamp(min=0)], places >= 0


def is_open(mask: Tensor) -> Tensor:
    """Bool from a bool or an additive mask."""
    return mask if mask.dtype == torch.bool else mask > CLOSED


def kernel_mask(allowed: Tensor, bias: Tensor | None, eager: bool, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """The cheapest (mask, is_causal) that tells a kernel the edges `allowed`, `[queries, keys]` bool.

    `bias`, `[keys]` or `[queries, keys]`, is added to the logits. Eager kernels need an additive mask always; the
    others run their fast paths on None. The mask returned is `[1, 1, queries, keys]`.
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
