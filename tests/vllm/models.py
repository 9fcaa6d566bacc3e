"""Tiny random LLaVAs in files, as vLLM and transformers both load them, with a tokenizer of single characters."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

GRID, PATCH, LAYERS = 8, 8, 8
VISUAL = GRID * GRID
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}{% endif %};{% endfor %}answer:"
)


def save_llava(folder: Path, text: str, hidden: int = 128, layers: int = LAYERS, grid: int = GRID) -> Path:
    """Weights, configuration and processor of a LLaVA with such a decoder."""
    torch.manual_seed(0)
    tokenizer = characters(["<image>"])
    model = LlavaForConditionalGeneration(_config(text, len(tokenizer), hidden, layers, grid))
    peaked(model).save_pretrained(folder)
    rename_tower(folder / "model.safetensors")
    side = {"height": PATCH * grid, "width": PATCH * grid}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _config(text: str, vocabulary: int, hidden: int, layers: int, grid: int) -> LlavaConfig:
    decoder = CONFIGS[text](
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=4096,
        initializer_range=0.08,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        **({"sliding_window": None} if text == "mistral" else {}),
    )
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PATCH * grid,
        patch_size=PATCH,
        projection_dim=64,
        initializer_range=0.1,
    )
    return LlavaConfig(
        text_config=decoder,
        vision_config=tower,
        image_token_index=3,
        image_seq_length=grid * grid,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def peaked(model: Any) -> Any:
    """Tokens differ in influence, and answers in probability."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name and ("q_proj.weight" in name or "k_proj.weight" in name):
                parameter.mul_(1.5)
            if "lm_head" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def characters(special: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of printable characters; `special` have numbers from 3 on."""
    words = ["<pad>", "<s>", "</s>", *special, *sorted(set(string.printable))]
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special,
        chat_template=TEMPLATE,
    )


def rename_tower(file: Path) -> None:
    """transformers 5 saves CLIP without the `vision_model.` that vLLM looks for; it reads both."""
    weights = load_file(file)
    for name in [name for name in weights if "vision_tower." in name and "vision_model." not in name]:
        weights[name.replace("vision_tower.", "vision_tower.vision_model.")] = weights.pop(name)
    save_file(weights, file, metadata={"format": "pt"})


def picture(seed: int, width: int = GRID * PATCH, height: int = GRID * PATCH) -> Image.Image:
    """A few coloured patches."""
    colours: Any = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


# Unlike lengths; one of text alone, one with two pictures: (prompt, seeds of its pictures).
PROMPTS: list[tuple[str, list[int]]] = [
    ("user:<image>What is it?;answer:", [1]),
    ("user:The sky is blue, so say what colour is a rose?;answer:", []),
    ("system:You answer.;user:<image>How many red things stand left of the blue one?;answer:", [2]),
    ("user:<image> and <image> which is brighter?;answer:", [3, 4]),
]
