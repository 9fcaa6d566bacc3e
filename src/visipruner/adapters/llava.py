"""LLaVA-1.5 and its kin: one image, one square grid of tokens, every row of it an image token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from visipruner.adapters.base import Adapter, tokens_equal
from visipruner.errors import LayoutError
from visipruner.layout import VisualRows


def locate(model: nn.Module, call: Mapping[str, Any]) -> VisualRows | None:
    """Visual rows are those whose id is the config's image token, as the model itself decides."""
    config: Any = model.config
    pixels = call.get("pixel_values")
    ids = call.get("input_ids")
    if ids is None:
        embeds = call.get("inputs_embeds")
        if embeds is None or pixels is None:
            return None
        placeholder = model.get_input_embeddings().weight[config.image_token_id]  # type: ignore[operator]
        mask = (embeds == placeholder).all(-1)
    else:
        mask = tokens_equal(ids, (config.image_token_id,))
        if pixels is None and call.get("mm_encoder_outputs") is None and mask.any():
            cache = call.get("past_key_values")
            if cache is None or cache.get_seq_length() == 0:
                raise LayoutError(
                    "The prompt has image tokens but no pixel_values; pass the processor's pixel_values, or remove "
                    "the image from the prompt."
                )
            mask = torch.zeros_like(mask)  # the model itself said the image token: a word like any other
    return VisualRows(mask, _grid(config, pixels))


def _grid(config: Any, pixels: Any) -> tuple[int, int] | None:
    """Patches of the resized image; the tower's own `image_size` may differ where positions are interpolated."""
    patch = getattr(config.vision_config, "patch_size", None)
    if pixels is None or patch is None:
        return None
    return int(pixels.shape[-2]) // patch, int(pixels.shape[-1]) // patch


ADAPTER = Adapter(
    family="LLaVA-1.5",
    model_types=("llava",),
    decoder=("model.language_model", "language_model"),
    embedder=("model", ""),
    locate=locate,
)
