"""The mask that a host layer was given: which keys a row may see, asked by row and logical column; and masks of ours in
the form that a kernel takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask

from visipruner.contract.layout import TokenLayout, uploaded
from visipruner.errors import UnsupportedModelError

# Additive masks close an edge with -inf, their type's lowest number, or some number below: old code has -10,000. What
# is above is a bias, and added as it is.
CLOSED = -1e4
ENTRIES_AT_ONCE = 1 << 26  # of masks that are looked at: 64 MB of bools


class MaskForm(Enum):
    """How kernels are told which keys a row may see."""

    BOOL = "bool"  # sdpa: by nothing where plain causality says it
    ADDED = "added"  # eager: always by a float that is added to the logits
    BLOCKS = "blocks"  # flex attention: by blocks of rows and keys
    LENGTHS = "lengths"  # flash attention: by lengths of sequences, and no mask

    def of(self, allowed: Tensor, dtype: torch.dtype) -> Any:
        """A mask in this form that says `allowed`, `[batch, queries, keys]` bool."""
        if self is MaskForm.BLOCKS:
            return _blocks(
                lambda example, head, query, key: allowed[example, query, key], allowed.shape, allowed.device
            )
        return (added(allowed, dtype) if self is MaskForm.ADDED else allowed)[:, None]

    def causal(self, count: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Of `count` rows that see themselves and those before; None where the kernel is told by a word."""
        if self is MaskForm.BLOCKS:
            return _blocks(lambda example, head, query, key: key <= query, (1, count, count), device)
        if self is MaskForm.ADDED:
            lowest = torch.finfo(dtype).min
            return torch.full((1, 1, count, count), lowest, dtype=dtype, device=device).triu(1)
        return None


def _blocks(may_see: Callable[..., Tensor], shape: Sequence[int], device: torch.device) -> BlockMask:
    batch, queries, keys = shape
    return create_block_mask(may_see, B=batch, H=None, Q_LEN=queries, KV_LEN=keys, device=device)


def unblocked(mask: Any) -> Any:
    """`[batch, 1, queries, keys]` bool of the blocks that flex kernels are given; other masks as they are."""
    if not isinstance(mask, BlockMask):
        return mask
    batch, _, queries, keys = mask.shape
    return create_mask(mask.mask_mod, batch, 1, queries, keys, device=mask.kv_num_blocks.device)


def added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits: 0, or the lowest number where nothing is `allowed` (bool)."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


@dataclass(frozen=True, eq=False)
class HostMask:
    """The mask a host layer was given for a forward of `seq` rows after `past` older ones.

    Attributes:
        tensor: `[batch or 1, 1, seq, columns]`, bool or additive, or None where plain causality says all. A sliding
            window's mask may start later than logical column 0.
        is_causal: per example, whether its real rows see the real rows up to themselves, and nothing else is said.
        given: what the layer was given, in the kernel's own form.
    """

    tensor: Tensor | None
    past: int
    seq: int
    is_causal: Sequence[bool] = ()
    given: Any = None

    @classmethod
    def of(cls, given: Any, past: int, layouts: Sequence[TokenLayout], seq: int) -> HostMask:
        """Finds out where a mask says no more than that a row sees itself and the real rows before; one read from the
        device for all examples, none where there is no mask."""
        if given is None:
            return cls(None, past, seq, [True] * len(layouts))
        tensor = unblocked(given)
        if tensor.ndim == 2:  # padding, as flash kernels are told: `[batch, columns]`
            columns = torch.arange(past + seq, device=tensor.device)
            causal = columns[None] <= columns[past:, None]
            seen = causal & tensor[:, None, None, : past + seq].bool()
            return cls(seen, past, seq, [True] * len(layouts), given)
        _check_heads(tensor)
        if tensor.shape[-1] < seq:  # a window narrower than the prompt
            return cls(tensor, past, seq, [False] * len(layouts), given)
        real = np.zeros((len(layouts), seq), dtype=bool)
        for flags, layout in zip(real, layouts, strict=True):
            flags[layout.on_host[0]] = True
        rows, step = uploaded(real, tensor.device), max(1, ENTRIES_AT_ONCE // seq**2)
        plain = []
        for start in range(0, len(layouts), step):
            some = slice(start, start + step)
            plain.append(_says_causal(tensor[some if len(tensor) > 1 else slice(1), 0, :, -seq:], rows[some]))
        return cls(tensor, past, seq, torch.cat(plain).tolist(), given)

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
        _check_heads(self.tensor)
        places = columns - (self.past + self.seq - self.tensor.shape[-1])
        mask = self.tensor[example if self.tensor.shape[0] > 1 else 0, 0]
        found = mask[rows[:, None], places.clamp(min=0)[None]]
        outside = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return found.masked_fill(places < 0, outside)


def is_open(mask: Tensor) -> Tensor:
    """Bool from a bool or an additive mask."""
    return mask if mask.dtype == torch.bool else mask > CLOSED


def _check_heads(mask: Tensor) -> None:
    if mask.shape[1] > 1:
        raise UnsupportedModelError(
            "An attention_mask with a map for each head cannot be followed while visual tokens are pruned; pass one of "
            "shape [batch, 1, queries, keys], or [batch, keys]."
        )


def _says_causal(mask: Tensor, real: Tensor) -> Tensor:
    """`[b]` bool: whether `mask` `[b or 1, seq, seq]` says of the rows `real` `[b, seq]` bool that they see, of each
    other, themselves and those before."""
    places = torch.arange(real.shape[1], device=mask.device)
    causal = places[None] <= places[:, None]
    if mask.dtype == torch.bool:
        says = mask == causal
    else:
        says = torch.where(causal, mask == 0, mask <= torch.finfo(mask.dtype).min / 2)
    return (says | ~(real[:, None] & real[:, :, None])).flatten(1).all(1)
