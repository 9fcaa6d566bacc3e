"""The vision tower by itself: what every method here must run before the decoder's first layer."""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from visipruner.adapters.base import submodule
from visipruner.engine.clock import synchronize

_PATHS = ("model.vision_tower", "model.visual", "vision_tower", "visual")


def tower_seconds(model: Any, visual_tokens: int) -> float | None:
    """Seconds of the tower for as many pixels as make `visual_tokens` tokens; None for towers of unknown input."""
    tower, config = submodule(model, _PATHS), getattr(model.config, "vision_config", None)
    if tower is None or config is None:
        return None
    inputs = _patches(model, config, visual_tokens) or _pictures(model, config, visual_tokens)
    if inputs is None:
        return None
    with torch.inference_mode():
        synchronize(model.device)
        start = time.perf_counter()
        tower(*inputs)
        synchronize(model.device)
        return time.perf_counter() - start


def _patches(model: Any, config: Any, tokens: int) -> tuple[Any, ...] | None:
    """Qwen-VL's towers take a list of patches and the image's grid."""
    merge, frames = getattr(config, "spatial_merge_size", None), getattr(config, "temporal_patch_size", None)
    if merge is None or frames is None:
        return None
    side = max(1, round(math.sqrt(tokens))) * merge
    size = config.in_channels * frames * config.patch_size**2
    pixels = torch.zeros(side * side, size, dtype=model.dtype, device=model.device)
    return pixels, torch.tensor([[1, side, side]], device=model.device)


def _pictures(model: Any, config: Any, tokens: int) -> tuple[Any, ...] | None:
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    patch = patch if isinstance(patch, int) else patch[0]
    per_image = getattr(model.config, "image_seq_length", None) or (height // patch) * (width // patch)
    count = max(1, round(tokens / per_image))
    return (torch.zeros(count, 3, height, width, dtype=model.dtype, device=model.device),)
