"""Images and video frames of models with M-RoPE, read from the positions of their rows."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.placeholders import runs
from visipruner.contract.layout import ImageTokens


def frames(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens] | None:
    """An `images`: every video frame is an image of its own, told from the next by its time.

    `position_ids` is `[3, batch, seq]` (time, height, width), or `[4, batch, seq]` with text positions before them.
    """
    positions = call.get("position_ids")
    if positions is None or positions.ndim != 3:
        return None
    time, height, width = positions[-3:].expand(-1, mask.shape[0], -1).to(mask.device)
    found = []
    for example, start, end in runs(mask):
        changes = (time[example, start:end].diff() != 0).nonzero().flatten() + 1 + start
        edges = [start, *changes.tolist(), end]
        for first, last in pairwise(edges):
            rows, columns = (int(axis[example, first:last].unique().numel()) for axis in (height, width))
            found.append(ImageTokens(last - first, (rows, columns) if rows * columns == last - first else None))
    return found
