"""Tiny random models of every supported family, built from configs; no weights, no network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

LAYERS = 6
WIDTH = 64
VOCAB = 99
IMAGE_TOKEN = 98
GRID = 4  # 4 x 4 = 16 visual tokens an image

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
TEXT_CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_COMMON),
    "llama-mha": lambda: LlamaConfig(**{**_COMMON, "num_key_value_heads": 4}),
    "qwen2": lambda: Qwen2Config(**_COMMON),
    "qwen2-sliding": lambda: Qwen2Config(
        **_COMMON, use_sliding_window=True, sliding_window=12, max_window_layers=LAYERS // 2
    ),
    "qwen3": lambda: Qwen3Config(**_COMMON, head_dim=16),
    "mistral": lambda: MistralConfig(**_COMMON, sliding_window=None),
    "mistral-sliding": lambda: MistralConfig(**_COMMON, sliding_window=12),
}
_TEXT_MODELS: dict[str, Any] = {
    "llama": LlamaForCausalLM,
    "qwen2": Qwen2ForCausalLM,
    "qwen3": Qwen3ForCausalLM,
    "mistral": MistralForCausalLM,
}
_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION_CONFIGS: dict[str, Any] = {
    "clip": lambda: CLIPVisionConfig(**_VISION, image_size=8 * GRID, patch_size=8),
    "siglip": lambda: SiglipVisionConfig(**_VISION, image_size=8 * GRID, patch_size=8),
    "dinov2": lambda: Dinov2Config(
        **{k: v for k, v in _VISION.items() if k != "intermediate_size"}, image_size=8 * GRID, patch_size=8
    ),
}


def text_model(kind: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A tiny text decoder whose attention is peaked enough for tokens to differ in influence."""
    torch.manual_seed(seed)
    model = _TEXT_MODELS[kind.split("-")[0]](TEXT_CONFIGS[kind]())
    return _prepared(model, attn, dtype)


def llava_model(vision: str = "clip", text: str = "llama", attn: str = "sdpa", seed: int = 0) -> Any:
    """A tiny stock LLaVA; SigLIP has no class token, so its features are taken in full."""
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=VISION_CONFIGS[vision](),
        text_config=TEXT_CONFIGS[text](),
        image_token_index=IMAGE_TOKEN,
        vision_feature_select_strategy="full" if vision == "siglip" else "default",
        vision_feature_layer=-1,
    )
    return _prepared(LlavaForConditionalGeneration(config), attn, torch.float32)


def _prepared(model: Any, attn: str, dtype: torch.dtype) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(8 if any(part in name for part in ("q_proj", "k_proj")) else 3)
    model = model.eval().to(dtype)
    model.set_attn_implementation(attn)
    return model


def prompt(
    batch: int = 1, before: int = 5, visual: int = GRID * GRID, after: int = 6, seed: int = 1
) -> tuple[Any, Any]:
    """Random `inputs_embeds` `[batch, n, d]` with a block of visual rows, and their mask `[batch, n]`."""
    generator = torch.Generator().manual_seed(seed)
    length = before + visual + after
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, before : before + visual] = True
    return torch.randn(batch, length, WIDTH, generator=generator), mask


def llava_inputs(layout: list[list[int]], padding_side: str = "left", seed: int = 1) -> dict[str, Tensor]:
    """Inputs for prompts given as lists: a positive number is that many text tokens, 0 is an image."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    images = 0
    for parts in layout:
        ids: list[int] = []
        for part in parts:
            if part == 0:
                ids += [IMAGE_TOKEN] * GRID * GRID
                images += 1
            else:
                ids += torch.randint(3, IMAGE_TOKEN, (part,), generator=generator).tolist()
        rows.append(ids)
    longest = max(map(len, rows))
    pad = [[0] * (longest - len(ids)) for ids in rows]
    ones = [[1] * len(ids) for ids in rows]
    left = padding_side == "left"
    inputs = {
        "input_ids": torch.tensor([p + r if left else r + p for p, r in zip(pad, rows, strict=True)]),
        "attention_mask": torch.tensor([p + o if left else o + p for p, o in zip(pad, ones, strict=True)]),
    }
    if images:
        inputs["pixel_values"] = torch.randn(images, 3, 8 * GRID, 8 * GRID, generator=generator)
    return inputs
