"""LLaVA-1.5 and its kin: one image, one square grid of tokens, every row of it an image token.

With Pixtral's vision encoder images have any size, and a break token, which is text, after each row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.base import NO_VIDEO, Adapter
from visipruner.adapters.placeholders import IMAGE, broken_rows, encoded_sizes, equal_squares, one_grid, rows_of
from visipruner.adapters.towers import Encoded, TokenPatches, sized_squares, squares
from visipruner.contract.layout import ImageTokens


def images(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens] | None:
    """Patches of the resized image; the tower's own `image_size` may differ where positions are interpolated."""
    config: Any = model.config
    if config.vision_config.model_type == "pixtral":
        return broken_rows(encoded_sizes(call), call.get("image_sizes"), config.vision_config.patch_size, mask)
    pixels, patch = call.get("pixel_values"), getattr(config.vision_config, "patch_size", None)
    if pixels is None or patch is None:
        return equal_squares(model, call, mask)
    return one_grid(int(pixels.shape[-2]) // patch, int(pixels.shape[-1]) // patch, int(mask.sum()))


def patches(model: Any, seen: Encoded) -> TokenPatches | None:
    """A token is a patch, whatever the encoder."""
    return (sized_squares if model.config.vision_config.model_type == "pixtral" else squares)(model, seen)


ADAPTER = Adapter(
    family="LLaVA-1.5, Pixtral",
    model_types=("llava",),
    locate=rows_of(IMAGE),
    images=images,
    visual="all tokens of an image; Pixtral's break and end tokens are text",
    lacks={"video": NO_VIDEO},
    vision=("model.vision_tower", "vision_tower"),
    patches=patches,
)
