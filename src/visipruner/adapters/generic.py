"""An adapter read from the model itself, for types that nobody described.

The layers are those of its `get_decoder`; visual rows are the ids that its own `get_placeholder_mask` takes for
placeholders, or else those that its config names. Grids of images cannot be read this way, nor which patches a visual
token is made of: that an adapter says, or `known_towers`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.adapters.base import Adapter
from visipruner.adapters.known_towers import NO_PATCHES, TOWERS
from visipruner.adapters.placeholders import encoded_sizes, runs
from visipruner.adapters.structure import DEEPSTACK, FROM_FIRST, Structure, read, refused
from visipruner.adapters.towers import squares
from visipruner.contract.layout import ImageTokens
from visipruner.errors import LayoutError

# What configs call the token whose row an image's feature overwrites.
NAMES = ("token_id", "token_index", "context_token_id", "patch_id", "pad_id")
KINDS = ("image", "video", "img", "im_")
PIXELS = ("pixel_values", "image_patches", "images", "high_res_pixel_values", "video_pixel_values")
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "norm_f", "ln_f", "embedding_norm")


def adapter_of(model: nn.Module) -> Adapter:
    """Describes a stock multimodal model by what it says about itself.

    Raises UnsupportedModelError with the reason where it has something that cannot be pruned.
    """
    structure = read(model)
    path, embedder = _embedder(model, structure)
    demanded = [
        name
        for name in _pixels(model)
        if inspect.signature(model.forward).parameters[name].default is inspect.Parameter.empty
    ]
    if demanded:
        raise refused(model.config, f"its forward demands {demanded[0]}, so answers are made by its decoder alone")
    ids = placeholder_ids(embedder)
    if not ids:
        raise refused(model.config, "neither it nor its config says which tokens stand for an image")
    kind: Any = model.config
    attention = structure.first_attention
    tower, patches = TOWERS.get(kind.model_type, ("", squares))
    return Adapter(
        family=kind.model_type,
        model_types=(kind.model_type,),
        decoder=(structure.path,),
        embedder=(path,),
        locate=partial(_rows, ids, tuple(dict.fromkeys((*_pixels(embedder), *_pixels(model))))),
        images=_unbroken,
        visual="the rows that the model overwrites with features",
        vision=(f"{path}.{tower}".lstrip("."),) if tower else (),
        patches=patches,
        no_patches=NO_PATCHES.get(kind.model_type, ""),
        layers=structure.layers,
        attention=structure.attention,
        final_norm=_child(structure.decoder, *_NORMS),
        output=_child(attention, "o_proj", "out_proj", "dense", "c_proj", "proj", "attn_out"),
        added_features=_added(structure),
    )


def completed(model: nn.Module, adapter: Adapter | None) -> Adapter:
    """An adapter with all that it does not say read from the model: everything, where there is none.

    Raises UnsupportedModelError with the reason where the model has something that cannot be pruned.
    """
    if adapter is None:
        return adapter_of(model)
    if adapter.decoder:
        return adapter
    structure = read(model)
    return replace(
        adapter,
        decoder=(structure.path,),
        embedder=(_embedder(model, structure)[0],),
        layers=structure.layers,
        attention=structure.attention,
        added_features=_added(structure),
    )


def _added(structure: Structure) -> tuple[str, str] | None:
    given = inspect.signature(structure.decoder.forward).parameters
    return next((names for names in (DEEPSTACK, FROM_FIRST) if set(names) <= set(given)), None)


def _child(module: nn.Module, *names: str) -> str:
    """The first of `names` that `module` has; the first of all where it has none."""
    return next((name for name in names if isinstance(getattr(module, name, None), nn.Module)), names[0])


def _embedder(model: nn.Module, structure: Structure) -> tuple[str, nn.Module]:
    """The innermost module that is given ids and pixels: the decoder, where it puts pictures in its rows by itself."""
    if hasattr(structure.decoder, "get_placeholder_mask"):
        return structure.path, structure.decoder
    if _pixels(structure.decoder):
        raise refused(model.config, "its decoder embeds pictures itself, so their rows are not known before it runs")
    inner = getattr(model, "model", None)
    for path, module in (("model", inner), ("", model)):
        if not isinstance(module, nn.Module) or module is structure.decoder:
            continue
        if hasattr(module, "get_placeholder_mask") or _pixels(module):
            return path, module
    raise refused(model.config, "no module of it is given both token ids and pixels")


def _pixels(module: nn.Module) -> tuple[str, ...]:
    """The arguments of a module's forward that bring pictures or videos."""
    return tuple(name for name in inspect.signature(module.forward).parameters if name.startswith(PIXELS))


# ---- which tokens ---------------------------------------------------------------------------------------------------


def placeholder_ids(embedder: nn.Module) -> tuple[int, ...]:
    """The ids whose rows `embedder` overwrites with features of images and videos."""
    named = set(named_ids(embedder.config))
    return tuple(sorted(_asked(embedder, named) or named))


def named_ids(config: Any) -> Iterator[int]:
    """Ids that a config, or its text part, calls an image's or a video's."""
    for part in (config, config.get_text_config(decoder=True)):
        for name in dir(part):
            if name.endswith(NAMES) and name.startswith(KINDS) and isinstance(getattr(part, name, None), int):
                yield int(getattr(part, name))


def _asked(embedder: nn.Module, named: set[int]) -> set[int]:
    """What the model's own `get_placeholder_mask` says of every id of its vocabulary, and of `named` ones beyond it.

    It is shown each id once, with one feature of width one, so that its own check of their numbers holds.
    """
    ask: Any = getattr(embedder, "get_placeholder_mask", None)
    if ask is None or "token_id" in inspect.signature(ask).parameters:  # it wants to be told itself
        return set()
    table: Any = embedder.get_input_embeddings()  # type: ignore[operator]
    ids = torch.tensor(sorted({*range(table.weight.shape[0]), *named}))[None]
    embeds, feature = torch.zeros(1, ids.shape[1], 1), torch.zeros(1, 1, 1)
    parameters = {name: value for name, value in inspect.signature(ask).parameters.items() if name.endswith("features")}
    found: set[int] = set()
    for kind in parameters:
        if "audio" in kind:
            continue
        others = {
            name: feature[:0] for name, value in parameters.items() if name != kind and value.default is value.empty
        }
        try:
            masks = ask(ids, embeds, **{kind: feature}, **others)
        except (ValueError, RuntimeError):
            continue  # no id, or more than one, is of this kind
        for mask in masks if isinstance(masks, tuple) else (masks,):
            if mask is not None and int(mask.sum()) == 1:
                found.add(int(ids[mask.reshape(ids.shape)]))
    return found - _audio(embedder.config)


def _audio(config: Any) -> set[int]:
    return {getattr(config, name) for name in dir(config) if name.startswith("audio_token")} - {None}


# ---- which rows -----------------------------------------------------------------------------------------------------


def _rows(ids: tuple[int, ...], pixels: tuple[str, ...], model: nn.Module, call: Mapping[str, Any]) -> Tensor | None:
    """A `locate`: rows of placeholder ids, where the call brings what fills them.

    Raises LayoutError for pixels that the model does not read, and for placeholders that nothing fills.
    """
    unread = [name for name in call if name.startswith(PIXELS) and name not in pixels and call[name] is not None]
    if unread:
        raise LayoutError(f"This model does not read {unread[0]}; leave them out, or pass frames as images.")
    encoded = call.get("mm_encoder_outputs") or {}
    is_filled = any(call.get(name) is not None for name in pixels) or any(part is not None for part in encoded.values())
    given = call.get("input_ids")
    if given is None:
        return _embedded(ids, model, call["inputs_embeds"]) if is_filled else None
    mask = torch.isin(given, torch.tensor(ids, device=given.device))
    if is_filled or not bool(mask.any()):
        return mask
    cache = call.get("cache")
    if cache is None or cache.get_seq_length() == 0:
        names = " or ".join(pixels)
        raise LayoutError(
            f"The prompt has image tokens but no {names}; pass the processor's {names}, or remove the image from the "
            "prompt."
        )
    return torch.zeros_like(mask)  # the model itself said the image token: a word like any other


def _embedded(ids: tuple[int, ...], model: nn.Module, embeds: Tensor) -> Tensor:
    table: Any = model.get_input_embeddings()  # type: ignore[operator]
    each = [(embeds == table(torch.tensor(token, device=embeds.device))).all(-1) for token in ids]
    return torch.stack(each).any(0)


def _unbroken(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens]:
    """An `images`: unbroken runs; images side by side are told apart where they come encoded one by one."""
    ends = set(accumulate(end - start for _, start, end in runs(mask)))
    encoded = getattr((call.get("mm_encoder_outputs") or {}).get("image"), "pooler_output", None)
    if not isinstance(encoded, Tensor) or encoded.ndim > 2:  # else features of all images in one go
        sizes = list(accumulate(encoded_sizes(call) or ()))
        ends |= set(sizes if sizes and sizes[-1] == int(mask.sum()) else ())
    return [ImageTokens(end - start) for start, end in pairwise([0, *sorted(ends)])]
