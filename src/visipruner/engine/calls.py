"""A call's arguments: by name, and those of them that have one entry per row of the sequence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.structure import KNOWN, PER_ROW
from visipruner.engine.rows import Rows
from visipruner.errors import UnsupportedModelError

# What hosts call their cache: from transformers 5.24 on, where callers may still use the older name, and before.
CACHE_NAMES = ("cache", "past_key_values")


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """A call's arguments by name, the cache as `cache` whatever the host calls it."""
    given = named(module.forward, args, kwargs)
    return {**given, "cache": cache_of(given)}


def named(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call's arguments by name."""
    if not args:
        return kwargs
    arguments = inspect.signature(function).bind_partial(*args, **kwargs).arguments
    return {**arguments, **arguments.get("kwargs", {})}


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's call with all but hidden states by name: some hosts give per-row arguments by position."""
    if len(args) < 2:
        return args, kwargs
    names = list(inspect.signature(module.forward).parameters)[1 : len(args)]
    return args[:1], {**dict(zip(names, args[1:], strict=True)), **kwargs}


def cache_of(kwargs: Mapping[str, Any]) -> Any:
    """The cache of keys and values among keyword arguments, None where there is none."""
    return next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)


def is_cached(decoder: nn.Module, call: Mapping[str, Any]) -> bool:
    """Whether a call of the decoder fills a cache: one that it is given, or one that it makes when it is given none."""
    wanted = call.get("use_cache")
    if wanted is None:
        wanted = getattr(decoder.config, "use_cache", False)
    return call["cache"] is not None or bool(wanted)


def brings_pixels(kwargs: Mapping[str, Any]) -> bool:
    """Whether keyword arguments hold pictures or videos that are still to be encoded."""
    return any(name.startswith("pixel_values") and given is not None for name, given in kwargs.items())


def cache_name(module: nn.Module) -> str:
    """What `module.forward` calls its cache."""
    known = inspect.signature(module.forward).parameters
    return next(name for name in CACHE_NAMES if name in known)


def seq_dim(name: str) -> int | None:
    """The sequence dimension of a per-row argument of a layer, None for other arguments."""
    return next((dim for prefix, dim in PER_ROW if name.startswith(prefix)), None)


def per_row(kwargs: Mapping[str, Any]) -> list[tuple[str, Any, int]]:
    """The keyword arguments that have one entry per row: (name, value, sequence dimension)."""
    found = []
    for name, given in kwargs.items():
        dim = seq_dim(name)
        if dim is not None and given is not None:
            found.append((name, given, dim))
    return found


def check_narrowed(kwargs: Mapping[str, Any], seq: int) -> None:
    """Raises UnsupportedModelError for a layer's argument that is as long as the `seq` rows of the prompt, and that
    would stay so once rows have left."""
    for name, given in kwargs.items():
        if isinstance(given, Tensor) and seq in given.shape and name not in KNOWN and seq_dim(name) is None:
            raise UnsupportedModelError(
                f"Layers are given {name} {list(given.shape)}, which nobody narrows to the rows that run; leave it "
                "out, or remove the pruner."
            )


def map_tensors(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """Applies a change to a tensor, or to every tensor of a tuple (cos and sin)."""
    return change(given) if isinstance(given, Tensor) else tuple(change(part) for part in given)


def scaling_of(kwargs: Mapping[str, Any], queries: Tensor) -> float:
    """The factor of the logits that an attention function was given, or the usual one."""
    return float(kwargs.get("scaling") or queries.shape[-1] ** -0.5)


def is_of_place(name: str) -> bool:
    """Whether a per-row argument says where a row is, which changes as gaps close; the others are the row's own."""
    return name.startswith("position")


def narrowed(kwargs: Mapping[str, Any], rows: Rows, placed: Rows, known: dict[str, Any]) -> dict[str, Any]:
    """The per-row arguments of a layer for some `rows` of the host's, which have the positions of those `placed`;
    `known` remembers them for the layers that are given the same ones."""
    return _once(kwargs, lambda name: placed if is_of_place(name) else rows, known, Rows.gather)


def narrowed_within(kwargs: Mapping[str, Any], where: Tensor, known: dict[str, Any]) -> dict[str, Any]:
    """The same for packed arguments and the places `where` `[n]` long among their rows."""
    return _once(kwargs, lambda name: where, known, lambda chosen, part, dim: part.index_select(dim, chosen))


def _once(
    kwargs: Mapping[str, Any],
    choose: Callable[[str], Any],
    known: dict[str, Any],
    change: Callable[[Any, Tensor, int], Tensor],
) -> dict[str, Any]:
    found = {}
    for name, given, dim in per_row(kwargs):
        where, (source, place, result) = choose(name), known.get(name, (None, None, None))
        if source is not given or place is not where:
            result = map_tensors(lambda part, dim=dim, where=where: change(where, part, dim), given)  # type: ignore[misc]
            known[name] = (given, where, result)
        found[name] = result
    return found
