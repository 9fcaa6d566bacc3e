"""Mistral 3 (Pixtral's vision encoder): images of any size, a break token after each row and an end token.

Break and end tokens are ordinary tokens with their own embeddings: they are text, and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.base import Adapter
from visipruner.adapters.placeholders import IMAGE, encoded_sizes, rows_of, runs
from visipruner.layout import ImageTokens


def images(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens] | None:
    """An image's rows are unbroken runs of one length; how many belong together, its number of tokens says."""
    sizes, pixels = encoded_sizes(call), call.get("image_sizes")
    if sizes is None and pixels is not None:
        config: Any = model.config
        step = config.vision_config.patch_size * config.spatial_merge_size
        sizes = [int(height) // step * (int(width) // step) for height, width in pixels]
    if sizes is None:
        return None
    widths = [end - start for _, start, end in runs(mask)]
    found = []
    for size in sizes:
        width = widths[0] if widths else 0
        height = size // width if width else 0
        is_grid = height * width == size and widths[:height] == [width] * height
        found.append(ImageTokens(size, (height, width) if is_grid else None))
        widths = widths[height:]
    return found


ADAPTER = Adapter(
    family="Mistral 3, Pixtral",
    model_types=("mistral3",),
    decoder=("model.language_model", "language_model"),
    embedder=("model", ""),
    locate=rows_of(IMAGE),
    images=images,
    visual="patches of an image; the break token after each row and the end token are text",
)
