"""Which rows of a prompt are visual, and how they lie. Nothing here knows a model family or a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visipruner.errors import LayoutError


@dataclass(frozen=True)
class ImageTokens:
    """One image's (or crop's, or video frame's) share of the visual rows.

    Attributes:
        count: its visual tokens, at least one. grid: `(rows, columns)` of them, or None where they are no grid.
    """

    count: int
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class VisualRows:
    """Visual rows of one forward, as an adapter finds them.

    Attributes:
        mask: `[batch, seq]` bool, True on visual rows.
        images: every image of the batch in prompt order, or None: then each unbroken run of rows is an image.
    """

    mask: Tensor
    images: Sequence[ImageTokens] | None = None


@dataclass(frozen=True)
class TokenLayout:
    """One example's rows in one forward.

    Attributes:
        real: `[n]` long, rows of the host's `[batch, seq]` tensors that are not padding, ascending.
        visual: `[n_v]` long, the visual ones among them, ascending; the i-th is visual token i.
        tokens_per_image: visual tokens of each image, in order.
        grids: per image `(rows, columns)`, or None where its tokens are no grid.
        spared: which of the example's rows with image features are no visual tokens, counted among all of them (see
            `layouts`).
    """

    real: Tensor
    visual: Tensor
    tokens_per_image: list[int] = field(default_factory=list)
    grids: list[tuple[int, int] | None] = field(default_factory=list)
    spared: tuple[int, ...] = ()

    @cached_property
    def on_host(self) -> tuple[np.ndarray, np.ndarray]:
        """`real` and `visual` as numbers; one read from the device, unless `layouts` made them from numbers."""
        return self.real.cpu().numpy(), self.visual.cpu().numpy()

    @cached_property
    def text(self) -> Tensor:
        """`[n_t]` long: the real rows that are not visual, ascending."""
        real, visual = self.on_host
        return _long(np.setdiff1d(real, visual, assume_unique=True), self.real.device)

    def to(self, device: torch.device) -> TokenLayout:
        """The same with its tensors on `device`."""
        moved = replace(self, real=self.real.to(device), visual=self.visual.to(device))
        vars(moved)["on_host"] = self.on_host
        return moved

    def per_image(self, tokens: Tensor) -> list[Tensor]:
        """For each image, which of `tokens` (numbers of visual tokens, `[n_v]` long) are its own, `[k]` long."""
        starts = [0, *accumulate(self.tokens_per_image)]
        if tokens.numel() == starts[-1]:  # all of them: nothing to look up
            return [torch.arange(start, end, device=tokens.device) for start, end in pairwise(starts)]
        return [((tokens >= start) & (tokens < end)).nonzero().flatten() for start, end in pairwise(starts)]


def uploaded(numbers: np.ndarray, device: torch.device) -> Tensor:
    """The host's numbers on a device. A GPU is not waited for: it takes them from pinned memory when it gets there."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _long(numbers: np.ndarray, device: torch.device) -> Tensor:
    return uploaded(numbers.astype(np.int64, copy=False), device)


def is_in_line(position_ids: Tensor | None, real: Tensor) -> bool:
    """Whether rows that are no padding (`real`, `[batch, seq]` bool) are numbered one after another.

    `position_ids`: `[batch or 1, seq]`, several such (time, height and width under M-RoPE), or None for the usual.
    """
    if position_ids is None:
        return True
    neighbours = real[:, 1:] & real[:, :-1]
    steps = position_ids.to(real.device).diff(dim=-1)
    return bool(((steps == 1) | ~neighbours).all())


def layouts(
    visual: VisualRows, real: Tensor, prompt_end: int | None = None, learnt: Tensor | None = None
) -> list[TokenLayout]:
    """One `TokenLayout` per example from `visual.mask` and `real`, both `[batch, seq]` bool on one device.

    A row from which a word is read must stay, so two rows are no visual tokens even where they hold image features:
    the last real row of an example's prompt, which ends before row `prompt_end`, and the last row of an image before a
    word that is `learnt` (`[batch, seq]` bool, rows with a label). Images of masked rows are passed over.
    Reads the masks from the device, once.
    """
    flags = torch.stack([visual.mask, real] + ([] if learnt is None else [learnt])).cpu().numpy()
    return layouts_of(flags[0], flags[1], visual.images, real.device, prompt_end, *flags[2:])


def layouts_of(
    visual: np.ndarray,
    real: np.ndarray,
    images: Sequence[ImageTokens] | None,
    device: torch.device,
    prompt_end: int | None = None,
    learnt: np.ndarray | None = None,
) -> list[TokenLayout]:
    """`layouts` of masks that were read already, for tensors on `device`."""
    found = []
    left = list(images or ())
    for example, (mask, rows) in enumerate(zip(visual, real, strict=True)):
        held = np.flatnonzero(mask & rows)
        mine, left = _take(left, int(mask.sum()))
        if len(held) != mask.sum():
            mine = None
        read = np.zeros_like(rows)
        read[np.flatnonzero(rows[:prompt_end])[-1:]] = True
        if learnt is not None:
            read[:-1] |= learnt[example, 1:] & ~mask[1:]
        found.append(_layout(held, read[held], np.flatnonzero(rows), mine or _runs(held), device))
    return found


def _take(images: list[ImageTokens], count: int) -> tuple[list[ImageTokens] | None, list[ImageTokens]]:
    """The images that make up the next `count` tokens, and those after them; None (and none) where they do not."""
    mine = []
    for image in images:
        if count <= 0:
            break
        mine.append(image)
        count -= image.count
    return (mine, images[len(mine) :]) if count == 0 else (None, [])


def _layout(
    held: np.ndarray, read: np.ndarray, real: np.ndarray, images: list[ImageTokens], device: torch.device
) -> TokenLayout:
    """`held`: rows with image features. `read`: `[len(held)]` bool, those of them that a word is read from."""
    lasts = [end - 1 for end in accumulate(image.count for image in images)]
    spared = [last for last in lasts if read[last]]
    shorter = [ImageTokens(image.count - 1) if read[last] else image for image, last in zip(images, lasts, strict=True)]
    left = [image for image in shorter if image.count]
    visual = np.delete(held, spared)
    layout = TokenLayout(
        real=_long(real, device),
        visual=_long(visual, device),
        tokens_per_image=[image.count for image in left],
        grids=[image.grid for image in left],
        spared=tuple(spared),
    )
    vars(layout)["on_host"] = (real, visual)
    return layout


def _runs(rows: np.ndarray) -> list[ImageTokens]:
    """An image for each unbroken run of `rows`."""
    if not len(rows):
        return []
    sizes = [len(run) for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)]
    return [ImageTokens(size, square(size)) for size in sizes]


def square(size: int) -> tuple[int, int] | None:
    """The square grid of so many tokens, if there is one."""
    side = round(size**0.5)
    return (side, side) if side * side == size else None


def check_visual_mask(given: Any) -> Tensor:
    """A user's `[batch, seq]` mask, a bool tensor or anything that numpy makes such an array of. Raises LayoutError."""
    try:
        mask = given if isinstance(given, Tensor) else torch.tensor(np.array(given))
    except (TypeError, ValueError, RuntimeError):  # rows of unlike length, or no numbers
        raise LayoutError(
            f"visual_mask must be a bool tensor of shape [batch, seq], which this {type(given).__name__} is not."
        ) from None
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
