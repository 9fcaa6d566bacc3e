"""Tiny models of types that nobody described, with towers whose patches are known, and pictures for them.

Text decoders are those of the tiny check; what is here is the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PretrainedConfig

from tests.families.prompts import END, IMAGE, START, VIDEO, Piece, Prompt, collate, join_first_dimension, words
from tests.families.zoo import PINPOINTS, Family, Picture, _broken_rows, _crops, _square
from tools.families.types import default_config
from visipruner.checking import tiny
from visipruner.checking.prompts import Asked, Side

OURS = {tiny.IMAGE: IMAGE, tiny.VIDEO: VIDEO, tiny.START: START, tiny.END: END}
PATCH = 8
# Sizes of towers by the names that configs give them.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "embed_dim", "mlp_dim", "num_pos_feats"), 32),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim",), 16),
    **dict.fromkeys(("image_size", "window_size"), 32),
    **dict.fromkeys(("num_position_embeddings", "num_patches", "position_embedding_size"), 64),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 8),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "projection_dim"), 64),
    "patch_size": PATCH,
}
# Of towers that read no pictures.
UNUSED: dict[str, Any] = {
    **dict.fromkeys(("d_model", "encoder_ffn_dim", "base_channels", "downsample_hidden_size", "latent_channels"), 32),
    **dict.fromkeys(("encoder_layers", "encoder_attention_heads", "num_res_blocks"), 1),
    **dict.fromkeys(("channel_multiplier",), 1),
    "output_dim": 64,
}


def _fit(config: Any, sizes: dict[str, Any]) -> None:
    """Gives a part of a config sizes, those that it has."""
    for name, value in sizes.items():
        if vars(config).get(name) is not None:
            kind = type(vars(config)[name])
            tiny._put(config, name, kind([value] * len(vars(config)[name])) if kind in (list, tuple) else value)


def config_of(kind: str, vision: dict[str, Any], **settings: Any) -> PretrainedConfig:
    """A type's config with everything small. `vision`: settings of the tower; `settings`: of the whole."""
    config = tiny.shrunk(default_config(kind))
    if getattr(config, "vision_config", "none") is None:  # Gemma 4's default reads text
        config.vision_config = type(config).sub_configs["vision_config"]()
    for name in ("vision_config", "adapter_config", "audio_config", "vq_config"):
        if getattr(config, name, None) is not None:
            _fit(getattr(config, name), SIZES if name in ("vision_config", "adapter_config") else UNUSED)
    for name, value in vision.items():
        tiny._put(config.vision_config, name, value)
    for name, value in settings.items():
        tiny._put(getattr(config, "adapter_config", None) or config, name, value)
    _rename(config)
    return config


def _rename(config: Any) -> None:
    """Placeholders as the prompts of these tests have them."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _rename(value)
        elif isinstance(value, int) and tiny._is_token(name) and value in OURS:
            tiny._put(config, name, OURS[value])


# ---- pictures -------------------------------------------------------------------------------------------------------

GRIDS = [(4, 4), (4, 6), (8, 4)]  # lines and columns of patches


def _lined(patch: tuple[int, ...], side: int = 2, extra: int = 0, **more: Tensor) -> Picture:
    """A picture of patches `patch` one after another, of which `side` squared make a token. `extra`: 1 where newlines
    and both ends have features, too. `more`: what else comes with a picture."""

    def picture(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
        lines, columns = GRIDS[number % 3]
        count = (lines // side) * (columns // side + extra) + 2 * extra
        tensors = {
            "pixel_values": torch.randn(lines * columns, *patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, lines, columns]]),
            **more,
        }
        return Piece([START, *[IMAGE] * count, END], [0, *[1] * count, 0], tensors)

    return picture


def _sized(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """LightOnOCR: as Pixtral's pictures, with nothing between the lines."""
    piece = _broken_rows(model, number, only, generator)
    count = piece.ids.count(IMAGE)
    return Piece([START, *[IMAGE] * count, END], [0, *[1] * count, 0], piece.tensors)


def _padded(name: str, side: int) -> Picture:
    """Patches of a picture padded to 48, with what tells where they are (Gemma 4) or how many (LFM2-VL)."""

    def picture(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
        lines, columns = GRIDS[number % 3]
        count, room = lines * columns, 48 - lines * columns
        pixels = torch.randn(1, 48, 3 * PATCH**2, generator=generator)
        pixels[:, count:] = 0
        tensors = {"pixel_values": pixels}
        if name == "image_position_ids":
            line, column = torch.meshgrid(torch.arange(lines), torch.arange(columns), indexing="ij")
            places = torch.stack([column, line], -1).view(1, -1, 2)
            tensors[name] = torch.cat([places, torch.full((1, room, 2), -1)], 1)
        else:
            tensors[name] = torch.tensor([[lines, columns]])
            tensors["pixel_attention_mask"] = (torch.arange(48) < count).long()[None]
        tokens = count // side**2
        return Piece([START, *[IMAGE] * tokens, END], [0, *[1] * tokens, 0], tensors)

    return picture


def _stripe(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """MiniCPM-V: patches side by side in one long picture; sixteen make a token."""
    lines, columns = [(4, 8), (8, 4), (8, 8)][number % 3]
    count = lines * columns // 16
    tensors = {
        "pixel_values": torch.randn(lines * columns, 3, PATCH, PATCH, generator=generator),
        "target_sizes": torch.tensor([[lines, columns]]),
    }
    return Piece([START, *[IMAGE] * count, END], [0, *[1] * count, 0], tensors)


def _join_stripes(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    joined = join_first_dimension(prompts)
    if "pixel_values" in joined:
        joined["pixel_values"] = joined["pixel_values"].permute(1, 2, 0, 3).flatten(2)[None]
    return joined


def _pooled(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """Molmo 2: one crop of 4 x 4 patches, whose squares the input lists; of the odd ones a patch is missing."""
    pools = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, -1]])
    tensors = {
        "pixel_values": torch.randn(1, 16, 3 * PATCH**2, generator=generator),
        "image_token_pooling": pools,
        "image_grids": torch.tensor([[2, 2, 0, 0]]),
        "image_num_crops": torch.tensor([1]),
    }
    return Piece([START, *[IMAGE] * 4, END], [0, *[1] * 4, 0], tensors)


def _join_pooled(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Places count through the crops of all."""
    joined = join_first_dimension(prompts)
    if "image_token_pooling" in joined:
        pools = joined["image_token_pooling"]
        first = torch.arange(len(pools))[:, None] // 4 * 16
        joined["image_token_pooling"] = torch.where(pools < 0, pools, pools + first)
    return joined


def _join_tiles(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Granite Docling: `[prompts, most tiles, ...]`, and which of them are there."""
    tiles = [[piece.tensors["pixel_values"] for piece in prompt if piece.tensors] for prompt in prompts]
    counts = [sum(map(len, parts)) for parts in tiles]
    if not any(counts):
        return {}
    pixels = torch.zeros(len(prompts), max(counts), 3, 32, 32)
    for row, parts in zip(pixels, tiles, strict=True):
        if parts:
            row[: sum(map(len, parts))] = torch.cat(parts)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.arange(max(counts)) < torch.tensor(counts)[:, None]}


def _twice(model: Any, number: int, only: bool, generator: torch.Generator) -> Piece:
    """DeepSeek-VL's hybrid: a picture in two sizes."""
    piece = _square(16)(model, number, only, generator)
    large = torch.randn(1, 3, 64, 64, generator=generator)
    return Piece(piece.ids, piece.types, {**piece.tensors, "high_res_pixel_values": large})


# ---- types ----------------------------------------------------------------------------------------------------------

PACKED, PLAIN = (3 * 2 * PATCH**2,), (3 * PATCH**2,)
_STACKED = {"deepstack_visual_indexes": [0, 1]}


def _kind(
    kind: str, picture: Picture, vision: dict[str, Any] | None = None, join: Any = join_first_dimension, **settings: Any
) -> Family:
    return Family(lambda: config_of(kind, vision or {}, **settings), picture, join=join)


def _hybrid() -> PretrainedConfig:
    config: Any = config_of("deepseek_vl_hybrid", {})
    large = config.high_res_vision_config
    _fit(large, {**SIZES, "image_size": 64, "output_channels": 8, "window_size": 2})
    tiny._put(large, "global_attn_indexes", [1])
    return config  # type: ignore[no-any-return]


KINDS: dict[str, Family] = {
    "aya_vision": _kind("aya_vision", _square(4), downsample_factor=2),
    "cohere2_vision": _kind("cohere2_vision", _square(4), downsample_factor=2, alignment_intermediate_size=64),
    "cohere_compass": _kind("cohere_compass", _lined(PACKED), _STACKED),
    "cosmos3_edge": _kind("cosmos3_edge", _lined(PLAIN), projector_hidden_size=64),
    "cosmos3_omni": _kind("cosmos3_omni", _lined(PACKED), _STACKED),
    "deepseek_vl": _kind("deepseek_vl", _square(16)),
    "deepseek_vl_hybrid": Family(_hybrid, _twice),
    "ernie4_5_vl_moe": _kind("ernie4_5_vl_moe", _lined(PLAIN)),
    "exaone4_5": _kind("exaone4_5", _lined(PACKED), {"fullatt_block_indexes": [1]}),
    "gemma4": _kind("gemma4", _padded("image_position_ids", 2), {"pooling_kernel_size": 2}),
    "glm_ocr": _kind("glm_ocr", _lined(PACKED)),
    "glmga": _kind("glmga", _lined(PACKED)),
    "granite_docling": _kind(
        "granite_docling", _crops, {"scale_factor": 2, "deepstack_visual_indexes": [0]}, _join_tiles
    ),
    "hunyuan_vl": _kind("hunyuan_vl", _lined(PLAIN, extra=1)),
    "hyperclovax_vision_v2": _kind("hyperclovax_vision_v2", _lined(PACKED), {"fullatt_block_indexes": [1]}),
    "janus": _kind("janus", _square(16), {"num_image_tokens": 16}),
    "kimi_k25": _kind("kimi_k25", _lined((3, PATCH, PATCH)), projection_hidden_size=32),
    "lfm2_vl": _kind("lfm2_vl", _padded("spatial_shapes", 2), projector_hidden_size=64),
    "lfm3_vl": _kind("lfm3_vl", _lined(PACKED), {"layer_types": ["conv", "full_attention"]}, projector_hidden_size=64),
    "lighton_ocr": _kind("lighton_ocr", _sized, {"image_size": 128}, spatial_merge_size=2),
    **{
        kind: _kind(
            kind,
            _stripe,
            {"insert_layer_id": 0, "num_hidden_layers": 3},
            _join_stripes,
            insert_layer_id=0,  # what the tower is given when the config is read from a file
            downsample_mode="16x",
        )
        for kind in ("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
    },
    "molmo2": _kind("molmo2", _pooled, {"num_position_embeddings": 16}, _join_pooled, vision_feature_layer=[-1]),
    **{
        kind: _kind(
            kind,
            _lined(PACKED),
            {"layer_types": ["window_attention", "full_attention"], "pos_emb_height": 4},
            out_hidden_size=128,
            projector_hidden_size=64,
        )
        for kind in ("muse_glimmer", "muse_spark")
    },
    "ovis2": _kind("ovis2", _square(4), {"hidden_stride": 2, "vocab_size": 50}),
    "paddleocr_vl": _kind("paddleocr_vl", _lined((3, PATCH, PATCH))),
    "qianfan_ocr": _kind("qianfan_ocr", _square(4), image_seq_length=4),
    "qwen2_5_omni_thinker": _kind("qwen2_5_omni_thinker", _lined(PACKED), {"fullatt_block_indexes": [1]}),
    "qwen3_5": _kind("qwen3_5", _lined(PACKED)),
    "qwen3_5_moe": _kind("qwen3_5_moe", _lined(PACKED)),
    "qwen3_omni_moe_thinker": _kind("qwen3_omni_moe_thinker", _lined(PACKED), _STACKED),
    "shieldgemma2": _kind("shieldgemma2", _square(16), mm_tokens_per_image=16),
    "video_llama_3": _kind("video_llama_3", _lined(PLAIN, side=1, image_merge_sizes=torch.tensor([1]))),
    "video_llava": _kind("video_llava", _square(16)),
    "vipllava": _kind("vipllava", _square(16), vision_feature_layer=[-1, -2], vision_feature_layers=[-1, -2]),
}


_SAM = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 32, "output_channels": 8,
    "window_size": 4, "initializer_range": 0.05,
}  # fmt: skip
_CODES = range(80, 88)  # words that pictures are turned into
_CODEBOOK: dict[str, Any] = {"base_channels": 32, "latent_channels": 4, "embed_dim": 4, "channel_multiplier": [1] * 4}
# Types of whose tokens it is known that they are made of no patches (`NO_PATCHES`): settings of their parts.
MIXED: dict[str, dict[str, dict[str, Any]]] = {
    "aria": {
        "vision_config": {"image_size": 980, "patch_size": 140},
        "": {"projector_patch_to_query_dict": {49: 6}, "max_value_projector_patch_to_query_dict": 6},
    },
    "chameleon": {
        "vq_config": {**_CODEBOOK, "resolution": 32, "num_embeddings": 8},
        "": {"vocabulary_map": {"<image>": IMAGE, **{f"IMGIMG{'ABCDEFGH'[at]}Z": _CODES[at] for at in range(8)}}},
    },
    "deepseek_ocr2": {
        "vision_config.sam_config": {
            **_SAM, "global_attn_indexes": [], "image_size": 128, "patch_size": 2, "downsample_channels": [16, 32],
        },
        "vision_config.encoder_config": {**SIZES, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2},
    },
    "emu3": {
        "vq_config": {**_CODEBOOK, "hidden_size": 32, "codebook_size": 8, "temporal_downsample_factor": 2},
        "": {
            "vocabulary_map": {
                "<image>": IMAGE,
                "<|extra_200|>": 88,
                **{f"<|visual token {at:06d}|>": _CODES[at] for at in range(8)},
            }
        },
    },
    "granite4_vision": {
        "vision_config": {"hidden_size": 64, "num_hidden_layers": 3},
        "qformer_config": {
            "hidden_size": 64, "encoder_hidden_size": 64, "num_attention_heads": 1, "intermediate_size": 32,
        },
        "text_config": {"num_hidden_layers": 6},
        "": {
            "image_grid_pinpoints": PINPOINTS,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[1, 0], [2, 1]],
            "spatial_target_layers": [2, 3, 4, 5],
        },
    },
    "idefics2": {
        "perceiver_config": {
            "hidden_size": 64, "resampler_n_latents": 6, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 2,
        },
    },
    "pp_chart2table": {"vision_config": {**_SAM, "global_attn_indexes": [1], "image_size": 64, "patch_size": 4}},
}  # fmt: skip


def _mixed(kind: str) -> PretrainedConfig:
    config = config_of(kind, {})
    for path, settings in MIXED[kind].items():
        part = reduce(getattr, filter(None, path.split(".")), config)
        for name, value in settings.items():
            tiny._put(part, name, value)
    return config


@cache
def built_kind(kind: str, attn: str = "eager") -> Any:
    """A type's tiny model with its tower; shared, never to be changed."""
    torch.manual_seed(0)
    config = _mixed(kind) if kind in MIXED else KINDS[kind].config()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_constant = weight.ndim > 1 and bool(
                (weight == weight.flatten()[0]).all()
            )  # Idefics2's queries are alike
            if not torch.isfinite(weight).all() or not bool(weight.any()) or is_constant:  # or left as found in memory
                weight.normal_(0, 0.05)
            if weight.ndim > 1:
                weight.mul_(8 if any(part in name for part in tiny._PEAKED) else 3)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


class TowerPrompts:
    """Prompts with pictures for a tower: as `checking.prompts.Prompts`."""

    videos = ""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def _pieces(self, asked: Asked) -> Iterator[Piece]:
        family, generator = KINDS[self._kind], torch.Generator().manual_seed(asked.words)
        yield words(5, generator)
        for number in asked.images:
            picture = torch.Generator().manual_seed(number)
            yield family.picture(built_kind(self._kind), number, len(asked.images) == 1, picture)
            yield words(2, generator)
        yield words(asked.words, generator)

    def inputs(self, asked: Sequence[Asked], side: Side = "left") -> dict[str, Any]:
        family, model = KINDS[self._kind], built_kind(self._kind)
        reads = {*inspect.signature(model.forward).parameters, *inspect.signature(model.model.forward).parameters}
        types = next((name for name in ("mm_token_type_ids", "token_type_ids") if name in reads), None)
        return collate([list(self._pieces(each)) for each in asked], side, types, family.join)

    def more(self) -> Tensor:
        return torch.tensor([[11, 37, 23, 64]])

    def suppressed(self) -> list[int]:
        return list(range(79, 100))
