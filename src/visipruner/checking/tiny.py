"""A model's config made small with every kind of its layers kept, and a model of random weights from it.

The vision tower stays on the meta device and never runs: features of images are given in its place (`prompts.py`).
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PretrainedConfig

from visipruner.adapters.structure import check_config
from visipruner.errors import UnsupportedModelError

VOCAB, IMAGE, VIDEO, AUDIO, START, END = 100, 90, 91, 92, 85, 86
LAYERS, MOST_LAYERS = 4, 12
# Sizes by the names that configs give them; what a config does not have, or has as None, it does not get.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "block_dim", "conv_dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "block_ff_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_attention_heads", "mamba_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_global_key_value_heads", "linear_num_key_heads", "index_n_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "mamba_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank", "linear_key_head_dim"), 8),
    **dict.fromkeys(("linear_value_head_dim", "hidden_size_per_layer_input", "ssm_state_size"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "laurel_rank"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "share_expert_dim"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_hidden_dim"), 24),
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups", "n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("moe_layer_start_index",), 1),
    **dict.fromkeys(("q_lora_rank", "query_pre_attn_scalar", "attention_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_chunk_size",), 16),
    **dict.fromkeys(("max_position_embeddings", "max_text_len", "index_topk"), 512),
    "sliding_window": 12,
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "pad_token_id": 0,
    "pad_token_idx": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
}
TOKENS = {
    "image": IMAGE,
    "video": VIDEO,
    "audio": AUDIO,
    "im_": IMAGE,
    "img": IMAGE,
    "vision_start": START,
    "vision_end": END,
}
_DEPTHS = ("num_hidden_layers", "hidden_layers", "n_layer", "num_layers", "decoder_layers")


def shrunk(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of a multimodal model's config whose text decoder is tiny.

    It has at least one layer of every kind that lists of the config tell apart (`layer_types` and the like), and a
    vocabulary of 100 ids among which its placeholders are.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config(decoder=True)
    _name_tokens(config)
    _shrink_towers(config, text)
    own = _shrink_layers(text)
    for name, value in SIZES.items():
        if _value(text, name) is not None:
            _put(text, name, [value] * len(_value(text, name)) if isinstance(_value(text, name), list) else value)
    if _value(text, "kv_lora_rank"):
        _put(text, "num_key_value_heads", 4)
        if "head_dim" in vars(text):
            _put(text, "head_dim", SIZES["qk_rope_head_dim"])
    _fit_rotary(text)
    if own:  # wider than the others, as they are
        text.per_layer_config = {
            layer: {name: 2 * SIZES[name] if name in SIZES else value for name, value in settings.items()}
            for layer, settings in own.items()
        }
    for name, value in (("vocab_size", VOCAB), ("hidden_size", 64), ("projection_dim", 64)):
        if config is not text and isinstance(vars(config).get(name), int):
            _put(config, name, value)
    return config


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # a setting that differs from layer to layer, which some configs refuse to tell as one
        return vars(config).get(name)


def _put(config: Any, name: str, value: Any) -> None:
    """Sets what a config's own checks would compare with settings that are still to change."""
    vars(config)[name] = value


def _name_tokens(config: Any) -> None:
    """Gives special tokens ids within the small vocabulary, in every part of the config."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            _name_tokens(value)
        elif isinstance(value, int) and not isinstance(value, bool) and _is_token(name):
            _put(config, name, SIZES.get(name, next((TOKENS[kind] for kind in TOKENS if name.startswith(kind)), 80)))


def _shrink_towers(config: Any, text: Any) -> None:
    """One layer each: they are made, but never run."""
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig) and part is not text:
            for name in ("num_hidden_layers", "depth", "num_layers", "n_layers", "layers"):
                if isinstance(vars(part).get(name), int):
                    _put(part, name, 1)
            _shrink_towers(part, text)


def _is_token(name: str) -> bool:
    return "token_id" in name or "token_index" in name or name in ("image_patch_id", "img_context_token_id")


def telling_kinds(text: Any, depth: int) -> dict[str, Sequence[Any]]:
    """The lists of a text config that tell kinds of layers apart: of one entry a layer, few of them unlike."""
    found = {name: value for name, value in vars(text).items() if isinstance(value, (list, tuple))}
    return {name: value for name, value in found.items() if len(value) == depth >= 2 * len(set(map(str, value)))}


def _shrink_layers(text: Any) -> dict[int, dict[str, Any]]:
    """Few layers, of every kind in turn. Returns the settings that single layers have of their own."""
    depth = text.num_hidden_layers
    several = text.to_dict().get("per_layer_config") or {}
    lists = [name for name, value in vars(text).items() if isinstance(value, (list, tuple)) and len(value) == depth > 3]
    kinds: dict[Any, list[int]] = {}
    telling = telling_kinds(text, depth)
    for layer in range(depth):
        kinds.setdefault(str([values[layer] for values in telling.values()]), []).append(layer)
    own = {int(layer): settings for layer, settings in several.items()}
    if own:
        text.per_layer_config = None
    wanted = min(max(LAYERS, 2 * len(kinds)), MOST_LAYERS, depth)
    turns: list[int] = []
    for _ in range(depth):
        for group in kinds.values():  # kinds by turns, so that each is met after the others, too
            turns += [layer for layer in group if layer > max(turns, default=-1)][:1]
    turns += [layer for layer in range(depth) if layer not in turns]
    chosen = sorted(turns[:wanted])
    for name in lists:
        _put(text, name, [vars(text)[name][layer] for layer in chosen])
    for name in _DEPTHS:
        if name in vars(text):
            _put(text, name, len(chosen))
    return {new: own[old] for new, old in enumerate(chosen) if old in own}


def _fit_rotary(text: Any) -> None:
    """Rotary sections that fill the small heads."""
    mla = _value(text, "kv_lora_rank")
    width = (
        SIZES["qk_rope_head_dim"] if mla else vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads
    )

    def fit(settings: Any) -> None:
        for name, value in list(settings.items()) if isinstance(settings, dict) else ():
            if name in ("mrope_section", "xdrope_section") and value:
                share, rest = divmod(width // 2, len(value))
                other = next((place for place, size in enumerate(value) if value.count(size) == 1), 0)
                settings[name] = [share + (rest if place == other else 0) for place in range(len(value))]
            elif name == "partial_rotary_factor":
                settings[name] = 1.0
            elif isinstance(value, dict):
                fit(value)

    rotary = _value(text, "rope_parameters")
    if isinstance(rotary, dict) and "mrope_section" in _source(text):
        for each in [part for part in rotary.values() if isinstance(part, dict)] or [rotary]:
            each.setdefault("mrope_section", [1, 1, 1])  # else the type's own, which is that of large heads
    fit(rotary)
    fit(_value(text, "rope_scaling"))


def _source(text: Any) -> str:
    """The file of the model that a text config is of, empty where there is none beside the config's."""
    try:
        return inspect.getsource(importlib.import_module(type(text).__module__.replace("configuration_", "modeling_")))
    except (ImportError, OSError):
        return ""


def built(config: PretrainedConfig, seed: int = 0) -> Any:
    """A model of a `shrunk` config: random weights, peaked enough for tokens to differ in influence; sdpa where the
    type has it, else eager attention."""
    torch.manual_seed(seed)
    kind = AutoModelForImageTextToText._model_mapping[type(config)]
    attn, model = _on_meta(kind, config)
    decoder = model.get_decoder()
    inside = [(owner, name) for owner in model.modules() for name, part in owner.named_children() if part is decoder]
    if not inside or decoder is getattr(model, "model", None):
        model = kind._from_config(copy.deepcopy(config), attn_implementation=attn, dtype=torch.float32)
    else:
        owner, name = inside[0]
        setattr(owner, name, type(decoder)._from_config(decoder.config, attn_implementation=attn, dtype=torch.float32))
        _complete(model, getattr(owner, name))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.numel() < 4e5:
                weight.mul_(8 if any(part in name for part in _PEAKED) else 3)
            if not torch.isfinite(weight).all():  # some types leave weights as they find them in memory
                weight.normal_(0, 0.05)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def _on_meta(kind: Any, config: PretrainedConfig) -> tuple[str, Any]:
    """The attention implementation, and a model without memory."""
    with torch.device("meta"):
        try:
            return "sdpa", kind._from_config(copy.deepcopy(config), attn_implementation="sdpa", dtype=torch.float32)
        except ValueError:  # the type, or its tower, has eager attention alone
            return "eager", kind._from_config(copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32)


_PEAKED = ("q_proj", "k_proj", "q_b_proj", "kv_b", "query_key_value", "att_proj", "qkv")
_HEADS = ("lm_head", "embed_out", "output_layer")


def _complete(model: nn.Module, decoder: nn.Module) -> None:
    """Around a real decoder: heads become real, towers leave the list of submodules and stay on the meta device."""
    for name, part in list(model.named_children()):
        if part is decoder:
            continue
        if any(inner is decoder for inner in part.modules()):
            _complete(part, decoder)
        elif isinstance(part, nn.Linear) and name in _HEADS:
            setattr(model, name, nn.Linear(part.in_features, part.out_features, bias=part.bias is not None))
        else:
            del model._modules[name]
            vars(model)[name] = part
    for name, weight in list(model._parameters.items()):
        if weight is not None:
            model._parameters[name] = nn.Parameter(torch.randn(weight.shape) * 0.02)
    for name, buffer in list(model._buffers.items()):
        if buffer is not None:
            model._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def shrunk_model(config: PretrainedConfig) -> Any:
    """A tiny model of a config. Raises UnsupportedModelError for one that says it cannot be pruned, and where
    transformers cannot make it so small."""
    check_config(config)
    try:
        return built(shrunk(config))
    except Exception as error:
        raise UnsupportedModelError(
            f"No tiny model of type {config.model_type!r} could be made from its config ({type(error).__name__}: "
            f"{error}); check the full one with its weights (visipruner check --full)."
        ) from error
