"""Key/value memory: the bytes a cache really holds, counted from its tensors, and the bytes a trace leads to expect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch

from visipruner.models.shape import ModelShape


@dataclass(frozen=True)
class CacheBytes:
    """Bytes of a cache, all layers and examples.

    Attributes:
        used: elements of the keys and values as seen by attention (padding and preallocated slots included).
        held: memory kept alive by keys and values. More than `used` where a tensor is a view of a larger one; a
            storage that several layers share counts once.
        bookkeeping: memory kept alive by the layers' other tensors (positions, biases, what may come back).
    """

    used: int
    held: int
    bookkeeping: int

    @property
    def total(self) -> int:
        """All memory that goes away with the cache."""
        return self.held + self.bookkeeping


def cache_bytes(cache: Any) -> CacheBytes:
    """Counts a transformers cache (anything with `.layers` of `keys` and `values`) or a sequence of (key, value) pairs.

    Raises TypeError for anything else. A layer that holds nothing yet counts 0.
    """
    key_values: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for layer in _layers(cache):
        own = [tensor for tensor in (layer.pop("keys", None), layer.pop("values", None)) if tensor is not None]
        key_values += own
        others += _tensors(layer.values())
    kept_alive = _storages(key_values)
    other_storages = {address: size for address, size in _storages(others).items() if address not in kept_alive}
    return CacheBytes(
        used=sum(tensor.numel() * tensor.element_size() for tensor in key_values),
        held=sum(kept_alive.values()),
        bookkeeping=sum(other_storages.values()),
    )


def expected_kv_bytes(shape: ModelShape, key_lengths: Sequence[int], dtype_bytes: int, new_tokens: int = 0) -> int:
    """Bytes of one example's keys and values, `2 H_kv h` numbers per key, when each layer holds `key_lengths[l]`.

    `new_tokens` keys more in every layer that attends after as many decoded tokens; states are not counted. Padding to
    the batch's longest is not in it, nor are sliding windows: a plain layer with one drops older keys and holds less, a
    pruned one does not (`cache_bytes` counts what there is).
    """
    if len(key_lengths) != shape.num_layers:
        raise ValueError(f"got the key lengths of {len(key_lengths)} layers for a model of {shape.num_layers}")
    attending = [keys for layer, keys in enumerate(key_lengths) if layer not in shape.state_layers]
    keys = sum(attending) + len(attending) * new_tokens
    return 2 * shape.num_kv_heads * shape.head_dim * dtype_bytes * keys


def dense_kv_bytes(shape: ModelShape, length: int, dtype_bytes: int, new_tokens: int = 0) -> int:
    """Bytes of one example's keys and values in the plain model, for a prompt of `length` rows."""
    return expected_kv_bytes(shape, [length] * shape.num_layers, dtype_bytes, new_tokens)


def _layers(cache: Any) -> Iterator[dict[str, Any]]:
    if hasattr(cache, "layers"):
        yield from (dict(vars(layer)) for layer in cache.layers)
    elif isinstance(cache, (list, tuple)):
        for pair in cache:
            yield {"keys": pair[0], "values": pair[1]}
    else:
        raise TypeError(f"cannot count a {type(cache).__name__}: expected a transformers cache or (key, value) pairs")


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
        elif is_dataclass(value):
            yield from _tensors(vars(value).values())


def _storages(tensors: Iterable[torch.Tensor]) -> dict[tuple[str, int], int]:
    """Bytes per distinct storage. Empty storages share the address 0 and size 0."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        found[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    return found
