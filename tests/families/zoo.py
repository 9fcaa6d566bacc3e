"""Tiny random models of every family, with prompts; four layers, no weights, no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    MistralConfig,
    MixtralConfig,
    PaliGemmaConfig,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

from tests.families.prompts import (
    BOS,
    BREAK,
    END,
    EOS,
    IMAGE,
    PAD,
    ROW,
    START,
    VIDEO,
    VOCAB,
    Join,
    Piece,
    Prompt,
    collate,
    join_first_dimension,
    join_per_prompt,
    words,
)
from visipruner.adapters import Adapter, described

LAYERS = 4
_TEXT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
# Two layers, for methods that look at the last but one.
_VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SQUARE: dict[str, Any] = {**_VISION, "image_size": 32, "patch_size": 8}
_TOKENS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}

# (model, number of the image in its prompt, whether it is the prompt's only one, generator)
Picture = Callable[[Any, int, bool, torch.Generator], Piece]


@dataclass(frozen=True)
class Family:
    """One family under test.

    Attributes:
        config: builds the model's config. picture, video: build one image or video with its tokens.
        types: name of the token types among the inputs, and `later_type` that of generated tokens.
        join: collects the pieces' tensors.
    """

    config: Callable[[], Any]
    picture: Picture
    video: Picture | None = None
    types: str | None = None
    later_type: int = 0
    join: Join = join_first_dimension


def _pixels(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _square(tokens: int, around: bool = False, types: int = 0) -> Picture:
    """One 32 x 32 image as `tokens` tokens."""

    def picture(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
        ids = [START] * around + [IMAGE] * tokens + [END] * around
        kinds = [0] * around + [types] * tokens + [0] * around
        return Piece(ids, kinds, {"pixel_values": _pixels(generator, 1, 3, 32, 32)})

    return picture


def _anyres(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """An image of its own shape in several crops; how many tokens that makes, the model says."""
    size = torch.tensor([[[32, 56], [30, 30], [60, 20]][number % 3]])
    crops = image_size_to_num_patches(size[0], PINPOINTS, 32)
    tensors = {"pixel_values": _pixels(generator, 1, crops, 3, 32, 32), "image_sizes": size}
    extra: dict[str, Tensor] = {}
    if model.config.model_type == "llava_onevision":
        crops = crops if only else 1
        tensors["pixel_values"] = tensors["pixel_values"][:, :crops]
        extra = {"batch_num_images": torch.tensor([1 if only else 2])}
    with torch.no_grad():
        features = model.model.get_image_features(**tensors, **extra, return_dict=True).pooler_output[0]
    return Piece([IMAGE] * len(features), [1] * len(features), tensors)


def _join_onevision(prompts: Any) -> dict[str, Tensor]:
    inputs = join_first_dimension(prompts)
    if "pixel_values" in inputs:
        counts = [sum("image_sizes" in piece.tensors for piece in prompt) for prompt in prompts]
        inputs["batch_num_images"] = torch.tensor([count for count in counts if count])
    return inputs


def _pooled_video(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    count = 3 * 4 + 1  # three frames pooled to 2 x 2, and a newline feature
    return Piece([VIDEO] * count, [2] * count, {"pixel_values_videos": _pixels(generator, 1, 3, 3, 32, 32)})


def _pooled_frames(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """LLaVA-NeXT-Video: three frames pooled to 2 x 2."""
    return Piece([VIDEO] * 12, [2] * 12, {"pixel_values_videos": _pixels(generator, 1, 3, 3, 32, 32)})


def _patches(grid: list[int], generator: torch.Generator) -> Tensor:
    return _pixels(generator, grid[0] * grid[1] * grid[2], 3 * 2 * 8 * 8)


def _mrope_image(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    grid = [[1, 8, 6], [1, 4, 10], [1, 6, 6]][number % 3]
    count = grid[1] * grid[2] // 4
    tensors = {"pixel_values": _patches(grid, generator), "image_grid_thw": torch.tensor([grid])}
    return Piece([START, *[IMAGE] * count, END], [0, *[1] * count, 0], tensors)


def _mrope_video(stamped: bool, token: int) -> Picture:
    """Two frames of 3 x 2 tokens, in one run or each with a time stamp before it."""

    def video(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
        grid = [2, 6, 4]
        tensors = {"pixel_values_videos": _patches(grid, generator), "video_grid_thw": torch.tensor([grid])}
        if not stamped:
            return Piece([START, *[token] * 12, END], [0, *[2] * 12, 0], tensors)
        return Piece([10, START, *[token] * 6, END] * 2, [0, 0, *[2] * 6, 0] * 2, tensors)

    return video


def _crops(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """Idefics3: two crops and the whole image, four tokens each, with separators in text."""
    ids = [START, ROW, *[IMAGE] * 4, START, ROW + 1, *[IMAGE] * 4, START, ROW, *[IMAGE] * 4, START]
    return Piece(ids, [0] * len(ids), {"pixel_values": _pixels(generator, 3, 3, 32, 32)})


def _tiles(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """InternVL: one to three tiles of four tokens each."""
    tiles = 3 - number % 3
    ids = [START, *[IMAGE] * 4 * tiles, END]
    return Piece(ids, [0] * len(ids), {"pixel_values": _pixels(generator, tiles, 3, 32, 32)})


def _broken_rows(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """Mistral 3: rows of tokens with a break after each; pixel values are padded to the largest image."""
    rows, columns = [(3, 4), (4, 2), (2, 2)][number % 3]
    ids = ([IMAGE] * columns + [BREAK]) * rows
    ids[-1] = END
    tensors = {
        "pixel_values": _pixels(generator, 1, 3, rows * 16, columns * 16),
        "image_sizes": torch.tensor([[rows * 16, columns * 16]]),
    }
    return Piece(ids, [0] * len(ids), tensors)


def _pixtral(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """As Mistral 3, patches unmerged."""
    rows, columns = [(3, 4), (4, 2), (2, 2)][number % 3]
    ids = ([IMAGE] * columns + [BREAK]) * rows
    ids[-1] = END
    tensors = {
        "pixel_values": _pixels(generator, 1, 3, rows * 8, columns * 8),
        "image_sizes": torch.tensor([[rows * 8, columns * 8]]),
    }
    return Piece(ids, [0] * len(ids), tensors)


def _llava(text: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(**_SQUARE),
        text_config=text(),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )


def _qwen2(cls: Any, **vision: Any) -> Callable[[], Any]:
    return lambda: cls(
        text_config={**_TEXT, "rope_parameters": _MROPE},
        vision_config={"patch_size": 8, "depth": 2, "num_heads": 2, **vision},
        vision_start_token_id=START,
        vision_end_token_id=END,
        **_TOKENS,
    )


def _qwen3(cls: Any, **text: Any) -> Callable[[], Any]:
    vision = {"patch_size": 8, "depth": 3, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    return lambda: cls(
        text_config={**_TEXT, "head_dim": 8, "rope_parameters": _MROPE, **text},
        vision_config={
            **vision,
            "out_hidden_size": 32,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        vision_start_token_id=START,
        vision_end_token_id=END,
        **_TOKENS,
    )


_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MOE_OF_GLM: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 0,
}


def _glm(cls: Any, **text: Any) -> Family:
    rope = {**_MROPE, "partial_rotary_factor": 1.0}
    sizes = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32}
    kinds = {"text_config": {"model_type": "glm4v_text"}, "vision_config": {"model_type": "glm4v_vision"}}
    named = kinds if cls is Glm46VConfig else {"text_config": {}, "vision_config": {}}
    return Family(
        lambda: cls(
            text_config={**named["text_config"], **_TEXT, "rope_parameters": rope, **text},
            vision_config={**named["vision_config"], **sizes, "patch_size": 8, "image_size": 64},
            image_start_token_id=START,
            image_end_token_id=END,
            **_TOKENS,
        ),
        _mrope_image,
        _mrope_video(True, IMAGE),
        "mm_token_type_ids",
    )


_LAYER_TYPES = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_GEMMA: dict[str, Any] = {**_TEXT, "head_dim": 8}

FAMILIES: dict[str, Family] = {
    "llava": Family(_llava(lambda: LlamaConfig(**_TEXT)), _square(16)),
    "llava-mixtral": Family(
        _llava(lambda: MixtralConfig(**_TEXT, num_local_experts=4, num_experts_per_tok=2)), _square(16)
    ),
    "llava-qwen3-moe": Family(_llava(lambda: Qwen3MoeConfig(**_TEXT, **_MOE, head_dim=8)), _square(16)),
    "pixtral": Family(
        lambda: LlavaConfig(
            vision_config=PixtralVisionConfig(**{**_VISION, "image_size": 128, "patch_size": 8}),
            text_config=MistralConfig(**_TEXT, head_dim=8, sliding_window=None),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ),
        _pixtral,
    ),
    "llava-next": Family(
        lambda: LlavaNextConfig(
            vision_config=CLIPVisionConfig(**_SQUARE),
            text_config=MistralConfig(**_TEXT, sliding_window=None),
            image_token_index=IMAGE,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
        ),
        _anyres,
    ),
    "llava-next-video": Family(
        lambda: LlavaNextVideoConfig(
            vision_config=CLIPVisionConfig(**_SQUARE),
            text_config=LlamaConfig(**_TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
            vision_feature_layer=-1,
        ),
        _anyres,
        _pooled_frames,
    ),
    "llava-onevision": Family(
        lambda: LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(**_SQUARE),
            text_config=Qwen2Config(**_TEXT),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=PINPOINTS,
        ),
        _anyres,
        _pooled_video,
        join=_join_onevision,
    ),
    "qwen2-vl": Family(
        _qwen2(Qwen2VLConfig, embed_dim=32, hidden_size=32, mlp_ratio=1),
        _mrope_image,
        _mrope_video(False, VIDEO),
        "mm_token_type_ids",
    ),
    "qwen2.5-vl": Family(
        _qwen2(
            Qwen2_5_VLConfig,
            hidden_size=32,
            out_hidden_size=32,
            intermediate_size=32,
            window_size=32,
            fullatt_block_indexes=[1],
        ),
        _mrope_image,
        _mrope_video(False, VIDEO),
        "mm_token_type_ids",
    ),
    "qwen3-vl": Family(_qwen3(Qwen3VLConfig), _mrope_image, _mrope_video(True, VIDEO), "mm_token_type_ids"),
    "qwen3-vl-moe": Family(
        _qwen3(Qwen3VLMoeConfig, **_MOE), _mrope_image, _mrope_video(True, VIDEO), "mm_token_type_ids"
    ),
    "internvl": Family(
        lambda: InternVLConfig(
            vision_config=InternVLVisionConfig(**_SQUARE),
            text_config=Qwen3Config(**_TEXT, head_dim=8),
            image_token_id=IMAGE,
            image_seq_length=4,
        ),
        _tiles,
    ),
    "idefics3": Family(
        lambda: Idefics3Config(
            vision_config=Idefics3VisionConfig(**_SQUARE),
            text_config=LlamaConfig(**_TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
        ),
        _crops,
        join=join_per_prompt,
    ),
    "smolvlm": Family(
        lambda: SmolVLMConfig(
            vision_config=SmolVLMVisionConfig(**_SQUARE),
            text_config=LlamaConfig(**_TEXT),
            image_token_id=IMAGE,
            scale_factor=2,
        ),
        _crops,
        join=join_per_prompt,
    ),
    "mistral3": Family(
        lambda: Mistral3Config(
            vision_config=PixtralVisionConfig(**{**_VISION, "image_size": 128, "patch_size": 8}),
            text_config=MistralConfig(**_TEXT, head_dim=8, sliding_window=None),
            image_token_index=IMAGE,
            spatial_merge_size=2,
        ),
        _broken_rows,
    ),
    "paligemma": Family(
        lambda: PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**_SQUARE, vision_use_head=False),
            text_config=GemmaConfig(**_GEMMA),
            image_token_index=IMAGE,
            vocab_size=VOCAB,
            projection_dim=32,
            hidden_size=32,
        ),
        _square(16),
        types="token_type_ids",
        later_type=1,
    ),
    "paligemma2": Family(
        lambda: PaliGemmaConfig(
            vision_config=SiglipVisionConfig(**_SQUARE, vision_use_head=False),
            text_config=Gemma2Config(**_GEMMA, query_pre_attn_scalar=5, sliding_window=12, attn_logit_softcapping=4.0),
            image_token_index=IMAGE,
            vocab_size=VOCAB,
            projection_dim=32,
            hidden_size=32,
        ),
        _square(16),
        types="token_type_ids",
        later_type=1,
    ),
    "gemma3": Family(
        lambda: Gemma3Config(
            vision_config=SiglipVisionConfig(**_SQUARE, vision_use_head=False),
            text_config=Gemma3TextConfig(
                **_GEMMA, query_pre_attn_scalar=5, sliding_window=12, layer_types=_LAYER_TYPES
            ),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
            mm_tokens_per_image=16,
        ),
        _square(16, around=True, types=1),
        types="token_type_ids",
    ),
    "glm4v": _glm(Glm4vConfig),
    "glm46v": _glm(Glm46VConfig),
    "glm4v-moe": _glm(Glm4vMoeConfig, **_MOE_OF_GLM),
}

# One of each adapter and kind of host, for what does not depend on the rest.
DISTINCT = (
    "llava",
    "pixtral",
    "llava-next",
    "qwen2-vl",
    "qwen3-vl",
    "internvl",
    "idefics3",
    "mistral3",
    "paligemma2",
    "gemma3",
)
# Of each test of all families, those of the default run; the others differ from these in their text model or in sizes,
# and `make families-test` runs them.
EACH_RUN = (*DISTINCT, "llava-onevision", "qwen2.5-vl")


@cache
def built(name: str, attn: str = "sdpa") -> Any:
    """A family's tiny model; shared, never to be changed."""
    return peaked(FAMILIES[name].config(), attn)


def peaked(config: Any, attn: str = "sdpa") -> Any:
    """A random model whose attention is peaked enough for tokens to differ in influence."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                peaked = any(part in parameter_name for part in ("q_proj", "k_proj"))
                parameter.mul_(8 if peaked else 3)
    model.generation_config.eos_token_id = None
    return model.eval()


def prompt(name: str, layout: list[int], seed: int = 1) -> Prompt:
    """A positive number is that many text tokens, 0 an image, -1 a video."""
    family, generator = FAMILIES[name], torch.Generator().manual_seed(seed)
    model, pieces, number = built(name, "eager"), [], 0
    for part in layout:
        if part > 0:
            pieces.append(words(part, generator))
        else:
            make = family.video if part else family.picture
            assert make is not None
            pieces.append(make(model, number + seed, layout.count(0) == 1, generator))
            number += 1
    return pieces


def inputs(name: str, prompts: list[Prompt], side: str = "left") -> dict[str, Any]:
    family = FAMILIES[name]
    return collate(prompts, side, family.types, family.join)


def adapter_of(name: str) -> Adapter:
    found = described(FAMILIES[name].config())
    assert found is not None
    return found


def visual_rows(ids: Tensor) -> Tensor:
    """What the host overwrites with image features, `[batch, seq]` bool."""
    return (ids == IMAGE) | (ids == VIDEO)


def layers_of(model: Any) -> list[Any]:
    """The layers of the text decoder."""
    decoder = getattr(model.model, "language_model", None) or model.model.text_model
    return list(decoder.layers)
