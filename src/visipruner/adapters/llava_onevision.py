"""LLaVA-OneVision: as LLaVA-NeXT for one image, one view for each of several, and videos of pooled frames.

Newline features (after a row of crops, an image, a video) lie on image and video tokens and count as visual, as in
LLaVA-NeXT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.base import VIDEO_PROCESSOR, Adapter
from visipruner.adapters.placeholders import IMAGE, VIDEO, encoded_sizes, image_sizes, rows_of
from visipruner.layout import ImageTokens


def images(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens]:
    """Sizes where images come encoded; a prompt with videos is split by its text."""
    has_video = call.get("pixel_values_videos") is not None or encoded_sizes(call, "video") is not None
    return image_sizes(model, {} if has_video else call, mask)


ADAPTER = Adapter(
    family="LLaVA-OneVision",
    model_types=("llava_onevision",),
    decoder=("model.language_model", "language_model"),
    embedder=("model", ""),
    locate=rows_of(IMAGE, VIDEO),
    images=images,
    visual="tokens of all crops and video frames, and the newline features among them",
    remarks={"run": VIDEO_PROCESSOR},
)
