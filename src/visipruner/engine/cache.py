"""A layer of a transformers cache that holds only some rows of a prompt and still reports the logical length."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from visipruner.engine.sealed import SealedLayer, SealedSlidingLayer, no_crop, sealed
from visipruner.errors import UnsupportedModelError, VisiPrunerError

PADDING = -1


@dataclass
class Incoming:
    """What the next `update` brings: the packed new rows of every example.

    Attributes:
        spans: where each example lies in the packed keys `[1, kv_heads, sum(lengths), head_dim]`.
        columns: per example `[n_b]` long, logical columns of its new rows.
        stored: per example, which of the new rows later tokens can need, `[n_b]` bool or None for all.
        logical: rows the host thinks it appended, padding and dropped rows included.
        transform: applied to each example's new values before they are stored.
        bias: per example `[n_b]` float added to the logits of its new rows, or None.
        beside: per example keys and values `[kv_heads, n, head_dim]` and columns `[n]` of rows that are not among the
            new ones, or None; they are stored too.
    """

    spans: list[slice]
    columns: list[Tensor]
    stored: list[Tensor | None]
    logical: int
    transform: list[Callable[[Tensor], Tensor] | None]
    bias: list[Tensor] | None = None
    beside: list[tuple[Tensor, Tensor, Tensor] | None] | None = None


class PrunedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the rows that ran in one layer, examples of unlike length padded on the left.

    `columns[b, i]` is the logical column (the row's place in the unpruned sequence) of prompt key i, PADDING where
    there is none; keys appended after the prompt follow in logical order. `get_seq_length` and `get_mask_sizes` speak
    of the unpruned sequence, so that the host's positions and masks stay what they would be without pruning.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, batch: int, sliding_window: int | None, is_attached: Callable[[], bool]) -> None:
        super().__init__()
        self.columns = torch.empty(batch, 0, dtype=torch.long)
        self.bias: Tensor | None = None
        self.logical = 0
        self.is_sliding = sliding_window is not None
        self._window = sliding_window
        self.incoming: Incoming | None = None
        self._is_attached = is_attached

    @classmethod
    def replace(cls, layer: Any, batch: int, owner: weakref.ref[Any]) -> PrunedLayer:
        """Takes over what a layer of a dynamic cache holds. Raises UnsupportedModelError for other caches."""
        if isinstance(layer, cls):
            return layer
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, SealedLayer, SealedSlidingLayer):
            raise UnsupportedModelError(
                f"Visual tokens cannot be pruned from a cache layer of type {type(layer).__name__}; use the default "
                "dynamic cache (no cache_implementation, or 'dynamic')."
            )
        window = layer.sliding_window if layer.is_sliding else None
        new = cls(batch, window, lambda: getattr(owner(), "is_attached", False))
        if layer.is_initialized and layer.keys.numel():
            new.lazy_initialization(layer.keys, layer.values)
            new.keys, new.values = layer.keys, layer.values
            new.logical = layer.get_seq_length()
            held = layer.keys.shape[-2]
            columns = torch.arange(new.logical - held, new.logical, device=layer.keys.device)
            new.columns = columns.expand(layer.keys.shape[0], -1)
        return new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends and returns what attention should see.

        Packed rows (announced by `incoming`) are stored example by example and handed back as they came: the routed
        attention adds each example's older keys itself. Other rows are appended as in any dynamic cache.
        """
        if not self._is_attached():
            raise VisiPrunerError(
                "This cache holds a pruned prompt; keep the pruner attached while decoding from it, or start with a "
                "new cache."
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.incoming is None:
            self.logical += key_states.shape[-2]
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
            return self.keys, self.values
        self._store(key_states, value_states, self.incoming)
        self.incoming = None
        return key_states, value_states

    def seed(self, keys: Tensor, values: Tensor, columns: Tensor, bias: Tensor, logical: int) -> None:
        """Begins with what another prompt left of its first `logical` rows; of a single example, before any update.

        Keys and values are `[kv_heads, n, head_dim]`, columns and bias `[n]`.
        """
        self.lazy_initialization(keys[None], values[None])
        self.keys, self.values, self.columns = keys[None], values[None], columns[None]
        self.bias = bias[None] if bool(bias.any()) else None
        self.logical = logical

    def _store(self, key_states: Tensor, value_states: Tensor, new: Incoming) -> None:
        keys, values, columns, biases = [], [], [], []
        for example, span in enumerate(new.spans):
            k, v, where = key_states[0, :, span], value_states[0, :, span], new.columns[example]
            transform = new.transform[example]
            if transform is not None:
                v = transform(v)
            bias = new.bias[example] if new.bias is not None else torch.zeros_like(where, dtype=torch.float32)
            stored = new.stored[example]
            if stored is not None:
                k, v, where, bias = k[:, stored], v[:, stored], where[stored], bias[stored]
            if new.beside is not None and (beside := new.beside[example]) is not None:
                k, v = torch.cat([beside[0], k], dim=-2), torch.cat([beside[1], v], dim=-2)
                where, bias = torch.cat([beside[2], where]), nn.functional.pad(bias, (beside[2].numel(), 0))
            old_k, old_v, old_where, old_bias = self.past(example)
            if old_where.numel():
                k, v = torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2)
                where, bias = torch.cat([old_where.to(where), where]), torch.cat([old_bias.to(bias), bias])
            keys.append(k)
            values.append(v)
            columns.append(where)
            biases.append(bias)
        longest = max(where.numel() for where in columns)
        self.keys = torch.stack([_pad_left(k, longest, -2) for k in keys])
        self.values = torch.stack([_pad_left(v, longest, -2) for v in values])
        self.columns = torch.stack([_pad_left(where, longest, -1, PADDING) for where in columns])
        keep_bias = self.bias is not None or new.bias is not None
        self.bias = torch.stack([_pad_left(bias, longest, -1) for bias in biases]) if keep_bias else None
        self.logical += new.logical

    def all_columns(self) -> Tensor:
        """`[batch, held]` long: logical column of every key held, PADDING where there is none."""
        tail = self._held() - self.columns.shape[1]
        appended = torch.arange(self.logical - tail, self.logical, device=self.columns.device)
        return torch.cat([self.columns, appended.expand(self.columns.shape[0], -1)], dim=1)

    def held_rows(self, example: int) -> int:
        """Keys held for one example, left padding excluded."""
        return int((self.all_columns()[example] != PADDING).sum()) if self._held() else 0

    def past(self, example: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One example's keys, values `[kv_heads, held_b, head_dim]`, columns and biases `[held_b]`, no padding."""
        if self._held() == 0:
            empty = torch.empty(0, device=self.columns.device)
            return empty, empty, empty.long(), empty
        columns = self.all_columns()[example]
        valid = columns != PADDING
        bias = torch.zeros_like(columns, dtype=torch.float32)
        if self.bias is not None:
            bias[: self.bias.shape[1]] = self.bias[example]
        return self.keys[example][:, valid], self.values[example][:, valid], columns[valid], bias[valid]

    def narrow_mask(self, mask: Tensor | None, queries: int, dtype: torch.dtype) -> Tensor | None:
        """The host's mask over the unpruned columns, for the keys held plus `queries` new ones.

        `mask` is `[batch or 1, 1, queries, columns]` (bool, or float to be added), or None where the host's kernel
        needs none; then None comes back too, unless padding or a sink's bias must be told to the kernel.
        """
        has_padding = bool((self.columns == PADDING).any())
        if mask is None and not has_padding and self.bias is None:
            return None
        old = self.all_columns()
        new = torch.arange(self.logical, self.logical + queries, device=old.device).expand(old.shape[0], -1)
        columns = torch.cat([old, new], dim=1)
        if mask is None:
            rows = torch.arange(self.logical, self.logical + queries, device=old.device)
            narrow = (columns[:, None, None] <= rows[:, None]) & (columns != PADDING)[:, None, None]
        else:
            mask = mask.to(old.device)  # hosts make one mask for all layers, on whichever device these are
            # A sliding host mask may start later than column 0; what lies before is out of every query's window.
            places = columns - (self.logical + queries - mask.shape[-1])
            inside = (places >= 0) & (columns != PADDING)
            wide = mask.expand(old.shape[0], -1, -1, -1)
            picked = wide.gather(-1, places.clamp(min=0)[:, None, None].expand(-1, wide.shape[1], queries, -1))
            if mask.dtype != torch.bool:
                lowest = torch.finfo(mask.dtype).min
                narrow = torch.where(inside[:, None, None], picked, lowest)
            else:
                narrow = picked & inside[:, None, None]
        if self.bias is None:
            return narrow
        if narrow.dtype == torch.bool:
            lowest = torch.finfo(dtype).min
            narrow = torch.where(narrow, torch.zeros((), dtype=dtype, device=narrow.device), lowest)
        bias = torch.nn.functional.pad(self.bias, (0, narrow.shape[-1] - self.bias.shape[1])).to(narrow.dtype)
        return (narrow + bias[:, None, None]).clamp(min=torch.finfo(narrow.dtype).min)

    def get_seq_length(self) -> int:
        return self.logical

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        # One mask serves all sliding layers of a model, so a sliding layer must ask for the width its unpruned
        # neighbours need, although it holds older keys too; `narrow_mask` copes with any width.
        hidden = 0 if self._window is None else max(self.logical - self._window + 1, 0)
        return self.logical - hidden + query_length, hidden

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last `-tokens_to_remove` tokens, which must have come after the pruned prompt."""
        count = abs(tokens_to_remove)
        if tokens_to_remove > 0 or count > self._held() - self.columns.shape[1]:
            raise no_crop()
        if count:
            self.keys, self.values = self.keys[..., :-count, :], self.values[..., :-count, :]
            self.logical -= count

    def seal(self) -> None:
        """What was appended so far belongs to a prompt that a later layer of the cache holds pruned."""
        self.columns = self.all_columns()

    def reset(self) -> None:
        super().reset()
        self.columns = self.columns[:, :0]
        self.bias = None
        self.logical = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rearrange(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rearrange(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rearrange(lambda tensor: tensor[indices, ...])

    def _rearrange(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._held():
            self.keys, self.values = change(self.keys), change(self.values)
        self.columns = change(self.columns)
        if self.bias is not None:
            self.bias = change(self.bias)

    def _held(self) -> int:
        return self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0


def seal_first(cache: Any) -> None:
    """Lets the first layer of a transformers cache refuse what a pruned one, after it, will refuse to have cropped."""
    first = cache.layers[0]
    if isinstance(first, PrunedLayer):
        first.seal()
    else:
        cache.layers[0] = sealed(first)


def _pad_left(tensor: Tensor, length: int, dim: int, value: int = 0) -> Tensor:
    missing = length - tensor.shape[dim]
    if missing == 0:
        return tensor
    padding = [0, 0] * (-dim - 1) + [missing, 0]
    return torch.nn.functional.pad(tensor, padding, value=value)
