"""A model taken apart by what it says about itself: its decoder's layers and their attention, or why it cannot be."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from visipruner.errors import UnsupportedModelError

# What a layer is given per row of the sequence besides hidden states: (name's beginning, sequence dimension). The
# engine narrows it with the rows.
PER_ROW = (("position_embeddings", -2), ("position_ids", -1), ("per_layer_input", -2), ("moe_mm_token_type_ids", -1))
# What has no entry per row, or is the mask and the cache, which the engine follows by itself. Keys shared between
# layers are refused by the config that says whether there are any.
KNOWN = {
    "hidden_states",
    "attention_mask",
    "causal_mask",
    "shared_kv_states",
    "cache",
    "past_key_values",
    "past_key_value",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
    "kwargs",
    "self",
}
# Where a decoder is told which rows get features of the image between its layers, and these (DeepStack): a list with
# one entry after each of the first layers, or by the layer before which they are added, from the first one on.
DEEPSTACK = ("visual_pos_masks", "deepstack_visual_embeds")
FROM_FIRST = ("vision_mask", "deepstack_features")
# Settings of decoders whose hidden states are several streams, not `[batch, seq, d]`.
STREAMS = ("altup_num_inputs", "hc_mult", "num_residual_streams", "mhc_num_streams")

# What is given a cache calls it so; the last name is that of states before transformers 5.24.
_CACHES = {"cache", "past_key_values", "cache_params"}


@dataclass(frozen=True)
class Structure:
    """Where a model has what the engine works with.

    Attributes:
        decoder: the module whose child `layers` is the list of decoder layers; `path` leads to it from the model.
        attention: attribute of the layers with their self-attention; those without have something else that mixes rows
            by a state (see `mixer_of`).
    """

    decoder: nn.Module
    path: str
    layers: str
    attention: str

    @property
    def first_attention(self) -> nn.Module:
        layers: Any = getattr(self.decoder, self.layers)
        return next(found for layer in layers if isinstance(found := getattr(layer, self.attention, None), nn.Module))


def read(model: nn.Module) -> Structure:
    """Takes a stock model apart. Raises UnsupportedModelError with what it has that cannot be pruned."""
    config: Any = model.config
    check_config(config)
    text = config.get_text_config(decoder=True)
    decoder, name = _layers(model, text.num_hidden_layers)
    layers = getattr(decoder, name)
    attention = _attention(model, layers)
    _check_arguments(model, layers)
    _check_additions(model, decoder)
    path = next(path for path, module in model.named_modules() if module is decoder)
    return Structure(decoder, path, name, attention)


def check_config(config: Any) -> None:
    """Raises UnsupportedModelError with what a config says of a model that cannot be pruned."""
    if getattr(config, "is_encoder_decoder", False):
        raise refused(config, "its decoder attends to an encoder's output, so its prompt has no visual rows")
    text = config.get_text_config(decoder=True)
    if getattr(text, "num_hidden_layers", None) is None:
        raise refused(config, "its config says of no decoder how many layers it has")
    if getattr(text, "num_kv_shared_layers", None):
        raise refused(config, "some of its layers attend to keys and values of an earlier layer")
    if getattr(text, "attn_temperature_tuning", None):
        raise refused(config, "its attention scales queries by a row's place in the call, which changes as rows leave")
    streams = next((name for name in STREAMS if (getattr(text, name, None) or 0) > 1), None)
    if streams is not None:
        raise refused(config, f"its hidden states are several streams ({streams}), not [batch, seq, d]")
    try:
        held = DynamicCache(config=text).layers
    except KeyError:  # a kind that the type's own file brings, which is not loaded yet: asked again of the model
        held = []
    for kind in dict.fromkeys(map(type, held)):
        if kind not in (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer):
            raise refused(config, f"its cache has layers of type {kind.__name__}, which cannot hold fewer rows")


def refused(config: Any, why: str) -> UnsupportedModelError:
    """The error that says why a type cannot be pruned."""
    return UnsupportedModelError(
        f"Models of type {config.model_type!r} are not supported: {why}. Choose another model, or pass "
        "attach(..., adapter=Adapter(...)) to describe it (docs/families.md)."
    )


def _layers(model: nn.Module, depth: int) -> tuple[nn.Module, str]:
    """The list of `depth` layers with attention, in the decoder that the model names, else anywhere in it."""
    get: Any = getattr(model, "get_decoder", None)
    for root in (model if get is None else get(), model):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            for name, child in module.named_children():
                is_list = isinstance(child, nn.ModuleList) and len(child) == depth
                if is_list and any(is_routed(part) for part in child.modules()):
                    return module, name
    raise refused(
        model.config, f"it has no list of {depth} decoder layers whose attention goes through transformers' interface"
    )


def is_routed(module: nn.Module) -> bool:
    """Whether a module's own forward hands its attention to a function of transformers' attention interface."""
    return _is_routed(type(module).forward)


@cache
def _is_routed(forward: Callable[..., Any]) -> bool:
    try:
        return "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(forward)
    except (OSError, TypeError):
        return False


def _attention(model: nn.Module, layers: Any) -> str:
    """What every layer that has self-attention calls it."""
    names = [[name for name, part in layer.named_children() if is_routed(part)] for layer in layers]
    known = next(found for found in names if found)
    for number, (layer, found) in enumerate(zip(layers, names, strict=True)):
        if not found and _mixer(layer) is not None:
            continue
        if not found:
            mixers = ", ".join(type(part).__name__ for _, part in layer.named_children())
            raise refused(
                model.config,
                f"layer {number} has no attention that goes through transformers' interface (it has {mixers})",
            )
        if len(found) > 1 or "cross" in found[0]:
            raise refused(model.config, f"layer {number} attends to something besides the prompt ({', '.join(found)})")
        if found != known:
            raise refused(model.config, f"layers call their attention by several names ({known[0]}, {found[0]})")
    return str(known[0])


def mixer_of(layer: nn.Module, attention: str) -> nn.Module:
    """What mixes the rows of a layer: its self-attention, called `attention`, or where it has none what passes a state
    from row to row (linear attention, a convolution). Raises UnsupportedModelError where it has neither."""
    found = getattr(layer, attention, None) or _mixer(layer)
    if not isinstance(found, nn.Module):
        raise UnsupportedModelError(
            f"A {type(layer).__name__} has no attention called {attention!r}; name it in the adapter "
            "(attention=..., docs/families.md)."
        )
    return found


def _mixer(layer: nn.Module) -> nn.Module | None:
    """The one child that is given the cache, and the mask of rows that are padding, and does not attend."""
    parts = [
        part
        for part in layer.children()
        if not is_routed(part) and _takes_cache(inspect.signature(part.forward).parameters)
    ]
    return parts[0] if len(parts) == 1 else None


def _takes_cache(names: Iterable[str]) -> bool:
    return {"hidden_states", "attention_mask"} <= set(names) and bool(_CACHES & set(names))


def _check_arguments(model: nn.Module, layers: Any) -> None:
    """A layer may be given only what the engine narrows with the rows, or what has no entry per row."""
    narrowed = tuple(name for name, _ in PER_ROW)
    for kind in {type(layer): layer for layer in layers}.values():
        given = inspect.signature(kind.forward).parameters
        unknown = [name for name in given if name not in KNOWN and not name.startswith(narrowed)]
        if unknown:
            raise refused(
                model.config, f"its layers are given {', '.join(unknown)}, which nobody narrows to the rows that run"
            )


def _check_additions(model: nn.Module, decoder: nn.Module) -> None:
    """Features that a decoder adds between its layers must be those that the engine adds in its place."""
    given = inspect.signature(decoder.forward).parameters
    unknown = [name for name in given if "deepstack" in name and name not in (*DEEPSTACK, *FROM_FIRST)]
    if unknown:
        raise refused(model.config, f"its decoder adds features of the image between layers ({unknown[0]})")
