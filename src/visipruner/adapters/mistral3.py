"""Mistral 3 (Pixtral's vision encoder): images of any size, a break token after each row and an end token.

Break and end tokens are ordinary tokens with their own embeddings: they are text, and stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.base import NO_VIDEO, Adapter
from visipruner.adapters.placeholders import IMAGE, broken_rows, encoded_sizes, rows_of
from visipruner.adapters.towers import sized_squares
from visipruner.contract.layout import ImageTokens


def images(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens] | None:
    """Patches, merged `spatial_merge_size` by `spatial_merge_size`."""
    config: Any = model.config
    step = config.vision_config.patch_size * config.spatial_merge_size
    return broken_rows(encoded_sizes(call), call.get("image_sizes"), step, mask)


ADAPTER = Adapter(
    family="Mistral 3",
    model_types=("mistral3",),
    locate=rows_of(IMAGE),
    images=images,
    vision=("model.vision_tower",),
    patches=sized_squares,
    visual="patches of an image; the break token after each row and the end token are text",
    lacks={"video": NO_VIDEO},
)
