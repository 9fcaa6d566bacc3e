"""The rows that a language model's head is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def give_whole_rows(model: Any) -> RemovableHandle:
    """Lets the head of a stock model multiply rows of their own instead of a slice of longer ones.

    Logits of a prompt's last row are computed from `hidden[:, -1:]`, whose strides are those of the whole prompt. Where
    no gradient is recorded torch multiplies such a slice as a batch of matrices, for which the CPU's bfloat16 product
    first copies the whole vocabulary matrix, once for each example: half a second at 7B. Copying the rows (a few
    kilobytes) avoids that. It has nothing to do with pruning and is for comparisons, in which it would weigh on both
    sides alike and hide their difference. Remove the handle to undo it.
    """
    return model.get_output_embeddings().register_forward_pre_hook(_whole)  # type: ignore[no-any-return]


def _whole(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rows = args[0] if args else None
    if not isinstance(rows, Tensor) or rows.ndim != 3 or rows.stride(0) == rows.shape[1] * rows.stride(1):
        return None
    # Not `contiguous()`, for which a dimension of one row has the right strides whatever they are.
    return rows.clone(memory_format=torch.contiguous_format), *args[1:]
