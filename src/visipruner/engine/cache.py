"""A layer of a transformers cache that holds only some rows of a prompt and still reports the logical length."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from visipruner.engine.edges import OtherKeys, joined_bias
from visipruner.engine.incoming import PADDING, Incoming, pad_left
from visipruner.engine.masks import MaskForm, added, unblocked
from visipruner.engine.sealed import SealedLayer, SealedSlidingLayer, no_crop, sealed
from visipruner.errors import UnsupportedModelError, VisiPrunerError


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
        self.is_padded = False  # whether any of `columns` is PADDING
        self.bias: Tensor | None = None
        self.logical = 0
        self.is_sliding = sliding_window is not None
        self._window = sliding_window
        self.incoming: Incoming | None = None
        self.left: Any = None  # in the last layer: rows of the prompt that may come back
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

    def seed(self, first: OtherKeys, logical: int) -> None:
        """Begins with what another prompt left of its `first` `logical` rows; of a single example, before any
        update."""
        self.lazy_initialization(first.keys[None], first.values[None])
        self.keys, self.values, self.columns = first.keys[None], first.values[None], first.columns[None]
        self.bias = None if first.bias is None else first.bias[None]
        self.logical = logical

    def bring(self, keys: Tensor, values: Tensor, columns: Tensor) -> None:
        """Rows of the prompt that were left out join it: keys and values `[1, kv_heads, k, head_dim]`, their logical
        columns `[k]` long. Of a single example, in a layer without biases."""
        self.keys, self.values = torch.cat([keys, self.keys], -2), torch.cat([values, self.values], -2)
        self.columns = torch.cat([columns[None], self.columns], 1)

    def _store(self, key_states: Tensor, value_states: Tensor, new: Incoming) -> None:
        if new.transform is not None:
            value_states = new.transform(value_states)
        if new.is_plain and not self._held():
            places, self.columns, self.is_padded = new.padded
            batch = len(new.rows.index)
            self.keys, self.values = (_batched(part, places, batch) for part in (key_states, value_states))
        else:
            self._store_each(key_states, value_states, new)
        self.logical += new.logical

    def _store_each(self, key_states: Tensor, value_states: Tensor, new: Incoming) -> None:
        """Rows that come after others, or with more than rows: example by example."""
        parts = [
            self._stored(example, key_states[0, :, span], value_states[0, :, span], new)
            for example, span in enumerate(new.rows.spans)
        ]
        lengths = [part.columns.numel() for part in parts]
        longest = max(lengths)
        self.keys = torch.stack([pad_left(part.keys, longest, -2) for part in parts])
        self.values = torch.stack([pad_left(part.values, longest, -2) for part in parts])
        self.columns = torch.stack([pad_left(part.columns, longest, -1, PADDING) for part in parts])
        self.is_padded = min(lengths) < longest
        biases = [joined_bias((part.columns, part.bias)) for part in parts]
        self.bias = None
        if any(bias is not None for bias in biases):
            none = torch.zeros(longest, device=self.columns.device)
            self.bias = torch.stack([none if bias is None else pad_left(bias, longest, -1) for bias in biases])

    def _stored(self, example: int, k: Tensor, v: Tensor, new: Incoming) -> OtherKeys:
        """All that an example holds once its new rows, keys and values `[kv_heads, n, head_dim]`, are stored."""
        where, bias = new.columns[example], None if new.bias is None else new.bias[example]
        if new.places is not None:
            mine = new.places[example]
            k, v, where = k[:, mine], v[:, mine], where[mine]
            bias = None if bias is None else bias[mine]
        mine_all = OtherKeys(k, v, where, bias, torch.zeros_like(where, dtype=torch.bool))
        beside = None if new.beside is None else new.beside[example]
        if beside is not None:
            mine_all = beside.joined(mine_all)
        return self.past(example).joined(mine_all) if self._held() else mine_all

    def all_columns(self) -> Tensor:
        """`[batch, held]` long: logical column of every key held, PADDING where there is none."""
        tail = self._held() - self.columns.shape[1]
        appended = torch.arange(self.logical - tail, self.logical, device=self.columns.device)
        return torch.cat([self.columns, appended.expand(self.columns.shape[0], -1)], dim=1)

    def held_rows(self, example: int) -> int:
        """Keys held for one example, left padding excluded."""
        if not self.is_padded:
            return self._held()
        return int((self.all_columns()[example] != PADDING).sum())

    def past(self, example: int) -> OtherKeys:
        """What is held of one example, without padding; none of it is visual to a prompt that comes after."""
        columns, keys, values = self.all_columns()[example], self.keys[example], self.values[example]
        bias = None
        if self.bias is not None:
            bias = nn.functional.pad(self.bias[example], (0, columns.numel() - self.bias.shape[1]))
        if self.is_padded:
            valid = (columns != PADDING).nonzero().flatten()
            columns, keys, values = columns[valid], keys[:, valid], values[:, valid]
            bias = None if bias is None else bias[valid]
        return OtherKeys(keys, values, columns, bias, torch.zeros_like(columns, dtype=torch.bool))

    def narrow_mask(
        self,
        mask: Any,
        queries: int,
        dtype: torch.dtype,
        known: dict[Any, Any] | None = None,
        form: MaskForm = MaskForm.BOOL,
    ) -> Any:
        """The host's mask over the unpruned columns, for the keys held plus `queries` new ones.

        `mask` is `[batch or 1, 1, queries, columns]` (bool, or float to be added), or None where the host's kernel
        needs none; then None comes back too, unless padding or a sink's bias must be told to the kernel. For flash
        kernels it is, and becomes, `[batch, columns]`, which keys are no padding; for flex kernels blocks. `known`
        remembers what one forward's layers have in common.
        """
        if mask is None and not self.is_padded and self.bias is None:
            return None
        if known is None:
            return self._in_form(form, mask, queries, dtype)
        key = (id(mask), id(self.columns), id(self.bias), self._held(), self.logical, self.columns.device, dtype)
        if key not in known:  # what the ids belong to is kept as long as they are
            known[key] = (self._in_form(form, mask, queries, dtype), mask, self.columns, self.bias)
        return known[key][0]

    def _in_form(self, form: MaskForm, mask: Any, queries: int, dtype: torch.dtype) -> Any:
        if form is MaskForm.LENGTHS:
            return self._narrowed_padding(mask, queries, dtype)
        narrow = self._narrowed(unblocked(mask), queries, dtype)
        is_told = form is not MaskForm.BLOCKS or narrow.is_floating_point()
        return narrow if is_told else form.of(narrow[:, 0], dtype)

    def _with_new(self, queries: int) -> Tensor:
        """`[batch, held + queries]`: `all_columns`, and those of the rows to come."""
        old = self.all_columns()
        new = torch.arange(self.logical, self.logical + queries, device=old.device).expand(old.shape[0], -1)
        return torch.cat([old, new], dim=1)

    def _narrowed_padding(self, mask: Tensor | None, queries: int, dtype: torch.dtype) -> Tensor:
        columns = self._with_new(queries)
        is_key = columns != PADDING
        if mask is not None:
            is_key = is_key & mask.to(columns.device).bool().gather(1, columns.clamp(min=0))
        return is_key

    def _narrowed(self, mask: Tensor | None, queries: int, dtype: torch.dtype) -> Tensor:
        columns = self._with_new(queries)
        batch, device = columns.shape[0], columns.device
        if mask is None:
            rows = torch.arange(self.logical, self.logical + queries, device=device)
            narrow = (columns[:, None, None] <= rows[:, None]) & (columns != PADDING)[:, None, None]
        else:
            mask = mask.to(device)  # hosts make one mask for all layers, on whichever device these are
            # A sliding host mask may start later than column 0; what lies before is out of every query's window.
            places = columns - (self.logical + queries - mask.shape[-1])
            inside = (places >= 0) & (columns != PADDING)
            wide = mask.expand(batch, -1, -1, -1)
            picked = wide.gather(-1, places.clamp(min=0)[:, None, None].expand(-1, wide.shape[1], queries, -1))
            if mask.dtype != torch.bool:
                lowest = torch.finfo(mask.dtype).min
                narrow = torch.where(inside[:, None, None], picked, lowest)
            else:
                narrow = picked & inside[:, None, None]
        return narrow if self.bias is None else biased(narrow, self.bias, dtype)

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
        if self._held() > self.columns.shape[1]:
            self.columns = self.all_columns()

    def reset(self) -> None:
        super().reset()
        self.columns = self.columns[:, :0]
        self.bias, self.is_padded, self.left = None, False, None
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
    """Lets the first layer of a transformers cache that holds keys refuse what a pruned one, after it, will refuse to
    have cropped."""
    place = next(place for place, layer in enumerate(cache.layers) if isinstance(layer, CacheLayerMixin))
    first = cache.layers[place]  # states, which may come before it, cannot be cropped at all
    if isinstance(first, PrunedLayer):
        first.seal()
    else:
        cache.layers[place] = sealed(first)


def _batched(packed: Tensor, places: Tensor | None, batch: int) -> Tensor:
    """`[1, kv_heads, n, head_dim]` as `[batch, kv_heads, longest, head_dim]`, by `places` `[batch * longest]` long."""
    if places is not None:
        packed = packed.index_select(2, places)
    elif packed.untyped_storage().nbytes() > packed.numel() * packed.element_size():
        packed = packed.clone(
            memory_format=torch.contiguous_format
        )  # a slice of a larger tensor would keep all of that in memory
    return packed if batch == 1 else packed.view(packed.shape[1], batch, -1, packed.shape[3]).transpose(0, 1)


def biased(mask: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask `[batch, 1, queries, keys]`, bool or added, with a bias `[batch, n]` on the logits of its first n keys."""
    if mask.dtype == torch.bool:
        mask = added(mask, dtype)
    wide = nn.functional.pad(bias, (0, mask.shape[-1] - bias.shape[1])).to(mask.dtype)
    return (mask + wide[:, None, None]).clamp(min=torch.finfo(mask.dtype).min)
