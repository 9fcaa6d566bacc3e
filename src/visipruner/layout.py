"""Which rows of a prompt are visual, and how they lie. Nothing here knows a model family or a method."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from visipruner.errors import LayoutError


@dataclass(frozen=True)
class VisualRows:
    """Visual rows of one forward, as an adapter finds them.

    Attributes:
        mask: `[batch, seq]` bool, True on visual rows.
        grid: `(rows, columns)` of every image's tokens where all images share one grid, else None.
    """

    mask: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class TokenLayout:
    """One example's rows in one forward.

    Attributes:
        real: `[n]` long, rows of the host's `[batch, seq]` tensors that are not padding, ascending.
        visual: `[n_v]` long, the visual ones among them, ascending; the i-th is visual token i.
        tokens_per_image: visual tokens of each image, in order.
        grids: per image `(rows, columns)`, or None where its tokens are no grid.
    """

    real: Tensor
    visual: Tensor
    tokens_per_image: list[int] = field(default_factory=list)
    grids: list[tuple[int, int] | None] = field(default_factory=list)


def layouts(visual: VisualRows, real: Tensor) -> list[TokenLayout]:
    """One `TokenLayout` per example from `visual.mask` and `real`, both `[batch, seq]` bool."""
    return [_layout(mask & rows, rows, visual.grid) for mask, rows in zip(visual.mask, real, strict=True)]


def _layout(mask: Tensor, real: Tensor, grid: tuple[int, int] | None) -> TokenLayout:
    rows = mask.nonzero().flatten()
    sizes = _run_lengths(rows)
    if grid is not None and rows.numel() % (grid[0] * grid[1]) == 0:
        sizes = [grid[0] * grid[1]] * (rows.numel() // (grid[0] * grid[1]))  # adjacent images are one run
    else:
        grid = None
    return TokenLayout(
        real=real.nonzero().flatten(),
        visual=rows,
        tokens_per_image=sizes,
        grids=[grid or _square(size) for size in sizes],
    )


def _run_lengths(rows: Tensor) -> list[int]:
    if rows.numel() == 0:
        return []
    breaks = (rows.diff() != 1).nonzero().flatten() + 1
    edges = [0, *breaks.tolist(), rows.numel()]
    return [end - start for start, end in pairwise(edges)]


def _square(size: int) -> tuple[int, int] | None:
    side = round(size**0.5)
    return (side, side) if side * side == size else None


def check_visual_mask(mask: Tensor) -> Tensor:
    """Validates a user's `[batch, seq]` mask. Raises LayoutError."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise LayoutError(
            f"visual_mask must be a bool tensor of shape [batch, seq], got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if not mask.any():
        raise LayoutError("visual_mask marks no visual row; mark the rows that hold image features with True.")
    return mask


def mask_for_forward(mask: Tensor, batch: int, past: int, seq: int, cached: bool) -> Tensor:
    """The part of a user's prompt mask that covers rows `past .. past + seq` of a forward, `[batch, seq]`.

    `generate` repeats examples for beams and return sequences, so a multiple of the mask's batch is accepted. Rows
    beyond the mask (generated or later turns) are text. Raises LayoutError when the mask is not of this prompt.
    """
    if batch % mask.shape[0]:
        raise LayoutError(f"visual_mask has {mask.shape[0]} examples but the model was called with {batch}.")
    if past == 0 and (seq < mask.shape[1] or (cached and seq != mask.shape[1])):
        raise LayoutError(
            f"visual_mask covers {mask.shape[1]} rows but the prompt has {seq}; attach with the mask of this prompt."
        )
    part = mask[:, past : past + seq]
    part = torch.nn.functional.pad(part, (0, seq - part.shape[1]))
    return part.repeat_interleave(batch // mask.shape[0], dim=0)
