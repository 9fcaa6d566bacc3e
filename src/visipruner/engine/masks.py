"""The mask that a host layer was given: which keys a row may see, asked by row and logical column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visipruner.contract.layout import TokenLayout
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
        is_causal: per example, whether its real rows see the real rows up to themselves, and nothing else is said.
    """

    tensor: Tensor | None
    past: int
    seq: int
    is_causal: Sequence[bool] = ()

    @classmethod
    def of(cls, tensor: Tensor | None, past: int, layouts: Sequence[TokenLayout], seq: int) -> HostMask:
        """Finds out where a mask says no more than that a row sees itself and the real rows before; one read from the
        device for all examples, none where there is no mask."""
        if tensor is None:
            return cls(None, past, seq, [True] * len(layouts))
        if tensor.ndim == 2:  # padding, as flash kernels are told: `[batch, columns]`
            columns = torch.arange(past + seq, device=tensor.device)
            causal = columns[None] <= columns[past:, None]
            return cls(causal & tensor[:, None, None, : past + seq].bool(), past, seq, [True] * len(layouts))
        asked = cls(tensor, past, seq)
        plain = [asked._says_causal(example, layout.real) for example, layout in enumerate(layouts)]
        return cls(tensor, past, seq, torch.stack(plain).tolist())

    def _says_causal(self, example: int, real: Tensor) -> Tensor:
        given = self.values(example, real, real + self.past)
        causal = real[None] <= real[:, None]
        if given.dtype == torch.bool:
            return (given == causal).all()
        closed = given <= torch.finfo(given.dtype).min / 2
        return torch.where(causal, given == 0, closed).all()

    def allowed(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """`[len(rows), len(columns)]` bool: which logical columns host rows (counted within the forward) may see."""
        return is_open(self.values(example, rows, columns))

    def seen(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """As `allowed`, or of an additive mask what it adds to the logits: float, -inf for closed edges."""
        given = self.values(example, rows, columns)
        return given if given.dtype == torch.bool else given.masked_fill(~is_open(given), float("-inf"))

    def values(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """`[len(rows), len(columns)]`, what the mask says there: bool, or what is added to the logits."""
        if self.tensor is None:
            return columns[None] <= rows[:, None] + self.past
        if self.tensor.shape[1] > 1:
            raise UnsupportedModelError(
                "An attention_mask with a map for each head cannot be followed while visual tokens are pruned; pass "
                "one of shape [batch, 1, queries, keys], or [batch, keys]."
            )
        places = columns - (self.past + self.seq - self.tensor.shape[-1])
        mask = self.tensor[example if self.tensor.shape[0] > 1 else 0, 0]
        found = mask[rows[:, None], places.clamp(min=0)[None]]
        outside = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return found.masked_fill(places < 0, outside)


def is_open(mask: Tensor) -> Tensor:
    """Bool from a bool or an additive mask."""
    return mask if mask.dtype == torch.bool else mask > CLOSED
