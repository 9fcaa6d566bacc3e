"""Tiny random Qwen2-VL and Qwen2.5-VL in files: images of any size, rows placed by time, line and column (M-RoPE)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tests.vllm.models import LAYERS, TEMPLATE, characters, peaked

SPECIAL = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
WIDTH = 128
PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 224 * 224}
_TOWERS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 64,
        "out_hidden_size": WIDTH,
        "intermediate_size": 128,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}
_CLASSES: dict[str, Any] = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor),
}


def save_qwen(folder: Path, kind: str) -> Path:
    """Weights, configuration and processor."""
    torch.manual_seed(0)
    tokenizer = characters(SPECIAL)
    config, model, processor = _CLASSES[kind]
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.08,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    }
    tower = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    start, image, end, video = range(3, 7)
    made = config(
        text_config=text,
        vision_config={**tower, **_TOWERS[kind], "initializer_range": 0.1},
        vision_start_token_id=start,
        image_token_id=image,
        vision_end_token_id=end,
        video_token_id=video,
        tie_word_embeddings=False,
    )
    peaked(model(made)).save_pretrained(folder)
    processor(
        image_processor=Qwen2VLImageProcessorPil(size=PIXELS),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=PIXELS),
        chat_template=TEMPLATE.replace("<image>", IMAGE),
    ).save_pretrained(folder)
    return folder
