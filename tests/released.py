"""Models and prompts that the authors' released codes were recorded on, made from seeds; see data/parity/README.md."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

BEFORE, VISUAL = 35, 576  # rows of text before the image, and of the image, as LLaVA-1.5 has them
WIDTH, VOCABULARY, IMAGE_ID = 64, 128, 127
LLAVA_LAYERS = 4
FORCED = (5, 16, 27)  # tokens that were fed after the prompt, one at a time
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 24,
    "num_attention_heads": 2,
    "image_size": 336,
    "patch_size": 14,
}


class _Draws:
    """Weights in the order in which the recordings drew them."""

    def __init__(self, seed: int) -> None:
        self.generator, self.weights = torch.Generator().manual_seed(seed), dict[str, Tensor]()

    def matrix(self, name: str, *shape: int, times: float = 1.0) -> None:
        self.weights[name] = torch.randn(*shape, generator=self.generator) * 0.02 * times

    def norm(self, name: str, width: int) -> None:
        self.weights[name] = 1 + 0.1 * torch.randn(width, generator=self.generator)


def text_config(layers: int = 32, kv_heads: int = 4) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def llama(seed: int, L: int = 32, kv: int = 4, qk: float = 8.0) -> LlamaForCausalLM:  # noqa: N803 (the recordings' word)
    """The Llama of a recorded case: of `L` layers, `kv` key heads and `qk` times usual query and key weights."""
    model = LlamaForCausalLM(text_config(L, kv)).eval()
    model.load_state_dict(_llama_weights(seed, L, kv, qk))
    return model


def _llama_weights(seed: int, layers: int, kv_heads: int, qk: float) -> dict[str, Tensor]:
    draw = _Draws(1000 + seed)
    draw.matrix("model.embed_tokens.weight", VOCABULARY, WIDTH, times=50)
    for layer in range(layers):
        name = f"model.layers.{layer}."
        draw.matrix(name + "self_attn.q_proj.weight", WIDTH, WIDTH, times=qk)
        draw.matrix(name + "self_attn.k_proj.weight", kv_heads * 16, WIDTH, times=qk)
        draw.matrix(name + "self_attn.v_proj.weight", kv_heads * 16, WIDTH, times=3)
        draw.matrix(name + "self_attn.o_proj.weight", WIDTH, WIDTH, times=3)
        draw.matrix(name + "mlp.gate_proj.weight", 96, WIDTH, times=3)
        draw.matrix(name + "mlp.up_proj.weight", 96, WIDTH, times=3)
        draw.matrix(name + "mlp.down_proj.weight", WIDTH, 96, times=3)
        draw.norm(name + "input_layernorm.weight", WIDTH)
        draw.norm(name + "post_attention_layernorm.weight", WIDTH)
    draw.norm("model.norm.weight", WIDTH)
    draw.matrix("lm_head.weight", VOCABULARY, WIDTH, times=10)
    return draw.weights


def _tower_weights(seed: int) -> dict[str, Tensor]:
    draw, width = _Draws(5000 + seed), _TOWER["hidden_size"]

    def norm(name: str) -> None:
        draw.norm(name + ".weight", width)
        draw.matrix(name + ".bias", width)

    draw.matrix("embeddings.class_embedding", width, times=50)
    draw.matrix("embeddings.patch_embedding.weight", width, 3, 14, 14, times=3)
    draw.matrix("embeddings.position_embedding.weight", 577, width, times=20)
    norm("pre_layrnorm")
    norm("post_layernorm")
    for layer in range(_TOWER["num_hidden_layers"]):
        name = f"encoder.layers.{layer}."
        for part, times in (("q_proj", 10.0), ("k_proj", 10.0), ("v_proj", 3.0), ("out_proj", 3.0)):
            draw.matrix(f"{name}self_attn.{part}.weight", width, width, times=times)
            draw.matrix(f"{name}self_attn.{part}.bias", width, times=5)
        norm(name + "layer_norm1")
        norm(name + "layer_norm2")
        draw.matrix(name + "mlp.fc1.weight", _TOWER["intermediate_size"], width, times=3)
        draw.matrix(name + "mlp.fc1.bias", _TOWER["intermediate_size"])
        draw.matrix(name + "mlp.fc2.weight", width, _TOWER["intermediate_size"], times=3)
        draw.matrix(name + "mlp.fc2.bias", width)
    return draw.weights


def llava(seed: int) -> LlavaForConditionalGeneration:
    """A LLaVA-1.5 in small: CLIP's tower of 24 layers and 577 rows, a projector, and a short Llama of the same seed."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER),
        text_config=text_config(LLAVA_LAYERS),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config).eval()
    generator, tower_width = torch.Generator().manual_seed(7000 + seed), _TOWER["hidden_size"]
    projector = {
        "linear_1.weight": torch.randn(WIDTH, tower_width, generator=generator) * 0.3,
        "linear_1.bias": torch.randn(WIDTH, generator=generator) * 0.1,
        "linear_2.weight": torch.randn(WIDTH, WIDTH, generator=generator) * 0.3,
        "linear_2.bias": torch.randn(WIDTH, generator=generator) * 0.1,
    }
    model.model.multi_modal_projector.load_state_dict(projector)
    tower = model.model.vision_tower
    tower.load_state_dict(_tower_weights(seed), strict=False)
    text = _llama_weights(seed, LLAVA_LAYERS, 4, 8.0)
    model.lm_head.load_state_dict({"weight": text.pop("lm_head.weight")})
    model.model.language_model.load_state_dict({name.removeprefix("model."): part for name, part in text.items()})
    return model


def embeds(seed: int, text: int | None = None) -> tuple[Tensor, Tensor]:
    """`inputs_embeds` `[1, n, d]` whose neighbouring visual rows resemble each other, and the mask of these."""
    generator = torch.Generator().manual_seed(seed)
    after = 20 + 7 * seed if text is None else text
    rows = torch.randn(1, BEFORE + VISUAL + after, WIDTH, generator=generator)
    smooth = torch.randn(1, 24, WIDTH, generator=generator).repeat_interleave(VISUAL // 24, 1)
    mask = torch.zeros(rows.shape[:2], dtype=torch.bool)
    mask[:, BEFORE : BEFORE + VISUAL] = True
    rows[:, BEFORE : BEFORE + VISUAL] = 0.7 * rows[:, BEFORE : BEFORE + VISUAL] + 0.7 * smooth
    return rows, mask


def picture_prompt(seed: int) -> dict[str, Tensor]:
    """`input_ids` and `pixel_values` of a question about one picture."""
    words = torch.Generator().manual_seed(3000 + seed)
    before, after = (torch.randint(3, 120, (count,), generator=words).tolist() for count in (BEFORE, 21))
    ids = torch.tensor([[*before, *[IMAGE_ID] * VISUAL, *after]])
    generator = torch.Generator().manual_seed(9000 + seed)
    coarse = torch.randn(1, 3, 12, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(336, 336), mode="bilinear")
    return {"input_ids": ids, "pixel_values": smooth + 0.3 * torch.randn(1, 3, 336, 336, generator=generator)}
