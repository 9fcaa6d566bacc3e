"""A static cache after a pruned prompt: the prompt is read into a dynamic cache as ever; once it has run, each layer
gets a place for the rows that *it* kept and for the answer, of a length that does not change. A step of the answer can
then be compiled, and is where transformers compiles (on accelerators, or as `compile_config` says).

Such a layer stands in the unpruned sequence by its `columns`, as a pruned one does, so one mask of the host serves all
layers: each gathers its own columns out of it, inside of the compiled step. Lengths are rounded up to a few sizes, as
every new one is compiled anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache, StaticLayer

from visipruner.contract.pruner import Pruner
from visipruner.engine.cache import PrunedLayer, biased
from visipruner.engine.calls import by_name, cache_of
from visipruner.engine.generating import Generates, Generation
from visipruner.engine.host import Host
from visipruner.engine.incoming import PADDING
from visipruner.engine.masks import MaskForm
from visipruner.engine.patch import Replaced
from visipruner.engine.twin import Twin
from visipruner.errors import UnsupportedModelError, VisiPrunerError

SMALLEST = 32
# Layers that become static, or hold as much after every step as they are.
_TURNED = {"DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer", "DummyLayer"}


def rounded(count: int) -> int:
    """The next of 0, 32, 48, 64, 96, 128, 192 and so on: two sizes an octave, at most half as much again."""
    if count == 0:
        return 0
    size = SMALLEST
    while size < count:
        size *= 2
    return 3 * size // 4 if size > SMALLEST and count <= 3 * size // 4 else size


class StaticRows(StaticLayer):  # type: ignore[misc]
    """Keys and values of the rows that one layer kept of a prompt, and room for those of its answer.

    The prompt's are in the first columns, up to a rounded length and after padding where they are fewer; the answer's
    follow. `columns[b, i]` is the place of key i in the host's mask, which is `width` wide; the last one is never open,
    and stands for keys that are not there. `get_seq_length` speaks of the unpruned sequence, as in a `PrunedLayer`.

    Args:
        held: the layer that read the prompt, of `logical` rows. room: rows of the answer. is_answered: whether the run
            of `generate` that this was made for goes on; the layer is of no use without it.
    """

    def __init__(self, held: Any, logical: int, room: int, width: int, is_answered: Callable[[], bool]) -> None:
        batch, count, device = len(held.keys), held.keys.shape[-2], held.keys.device
        start = rounded(count)
        super().__init__(start + room)
        self.is_sliding = held.is_sliding
        self._width, self._is_answered = width, is_answered
        self.lazy_initialization(held.keys, held.values)
        prompt = slice(start - count, start)
        self.keys[..., prompt, :], self.values[..., prompt, :] = held.keys, held.values
        self.cumulative_length.fill_(start)
        self._dropped = torch.full((), logical - start, device=device)
        self.columns = torch.full((batch, start + room), width - 1, device=device)
        self.columns[:, start:] = torch.arange(logical, logical + room, device=device).clamp(max=width - 1)
        self.bias: Tensor | None = None
        if isinstance(held, PrunedLayer):
            columns = held.all_columns()
            self.columns[:, prompt] = columns.masked_fill(columns == PADDING, width - 1)
            if held.bias is not None:
                after = self.columns.shape[1] - prompt.start - held.bias.shape[1]
                self.bias = nn.functional.pad(held.bias, (prompt.start, after))
        else:
            self.columns[:, prompt] = torch.arange(logical - count, logical, device=device)
        for part in (self._dropped, self.columns):
            torch._dynamo.mark_static_address(part)

    def narrow_mask(self, mask: Tensor | None, queries: int, dtype: torch.dtype, *_: Any) -> Tensor:
        """The host's mask `[batch or 1, 1, queries, width]`, bool or added, at the columns of this layer."""
        if mask is None:
            raise _not_answered()
        places = self.columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1)
        narrow = mask.expand(len(places), -1, -1, -1).gather(-1, places)
        return narrow if self.bias is None else biased(narrow, self.bias, dtype)

    def get_seq_length(self) -> Tensor:
        length: Tensor = self.cumulative_length + self._dropped
        return length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if not self._is_answered():
            raise _not_answered()
        return self._width, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        beams = beam_idx.to(self.columns.device)
        self.columns = self.columns.index_select(0, beams)
        self.bias = None if self.bias is None else self.bias.index_select(0, beams)

    def crop(self, tokens_to_remove: int) -> None:
        """Raises VisiPrunerError."""
        raise _not_answered()

    def reset(self) -> None:
        """Raises VisiPrunerError."""
        raise _not_answered()


def _not_answered() -> VisiPrunerError:
    return VisiPrunerError(
        "The static cache of a pruned prompt serves the one answer that generate made it for; for further turns leave "
        "cache_implementation out."
    )


class TurningCache(DynamicCache):  # type: ignore[misc]
    """Dynamic while a prompt is read; `turn` makes its layers static, for a sequence of up to `length` rows."""

    def __init__(self, config: Any, length: int) -> None:
        super().__init__(config=config)
        self._config, self._length = config, length

    def static(self) -> StaticCache:
        """What the host would have made: by it, it judges whether to compile. Holds nothing."""
        return StaticCache(config=self._config, max_cache_len=self._length)

    def turn(self, is_answered: Callable[[], bool]) -> None:
        """The prompt has run."""
        logical = int(self.get_seq_length())
        room, width = rounded(max(self._length - logical, 1)), rounded(self._length + 1)
        for layer, held in enumerate(self.layers):  # one after another: what is copied is let go
            if isinstance(held, DynamicLayer) and held.is_initialized:
                self.layers[layer] = StaticRows(held, logical, room, width, is_answered)
        self.layer_class_to_replicate = None


class StaticDecoding(Replaced):
    """Stands where `generate` prepares a static cache, reads the prompt and compiles a step, until `remove`.

    `opening`: knows the run of `generate`. hook_ids: the numbers of our hooks, which the compiled step does without.
    """

    def __init__(
        self, model: nn.Module, host: Host, pruner: Pruner, opening: Generates, hook_ids: frozenset[int]
    ) -> None:
        super().__init__()
        self._host, self._pruner, self._opening = host, pruner, opening
        self._twin = Twin(model, host, hook_ids, _entering)
        self._model = model
        for name, ours in (
            ("_prepare_static_cache", self._prepare),
            ("_valid_auto_compile_criteria", self._may_compile),
            ("get_compiled_call", self._compiled),
            ("_prefill", self._read),
        ):
            if hasattr(type(model), name):
                self.replace(model, name, ours)

    def __deepcopy__(self, memo: Any) -> StaticDecoding:
        return self  # a copy of an attached model does not run

    def _prepare(self, method: Any, cache_implementation: str, *, max_cache_len: int, **_: Any) -> TurningCache:
        cache = TurningCache(self._model.config.get_text_config(decoder=True), max_cache_len)  # type: ignore[union-attr, operator]
        self._check(cache_implementation, cache)
        self._opening.generation.is_static = True
        return cache

    def _check(self, name: str, cache: TurningCache) -> None:
        """Raises UnsupportedModelError, before the prompt is read."""
        kinds = {type(layer).__name__ for layer in cache.layers} - _TURNED
        why = {
            f"while cache_implementation={name!r} moves it between devices": "offloaded" in name,
            f"with {self._host.implementation}, only with 'sdpa' or 'eager'": (
                self._host.form not in (MaskForm.BOOL, MaskForm.ADDED)
            ),
            "while tokens may come back (recall)": self._pruner.recalls,
            "outside of the model's own generate": self._opening.generation is None,
            f"with layers of {', '.join(sorted(kinds))}": bool(kinds),
        }
        for what, is_so in why.items():
            if is_so:
                raise UnsupportedModelError(
                    f"A static cache cannot hold a pruned prompt {what}; use the default dynamic cache (no "
                    "cache_implementation, or 'dynamic'), or remove the pruner."
                )

    def _may_compile(self, method: Any, model_kwargs: dict[str, Any], *args: Any) -> bool:
        cache = cache_of(model_kwargs)
        if isinstance(cache, TurningCache):
            model_kwargs = {name: cache.static() if value is cache else value for name, value in model_kwargs.items()}
        return bool(method(model_kwargs, *args))

    def _compiled(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        generation = self._opening.generation
        if generation is None or not generation.is_static:
            return method(*args, **kwargs)
        generation.is_compiled = True
        twin: Any = self._twin.refresh()
        return twin.get_compiled_call(*args, **kwargs)

    def _read(self, method: Any, input_ids: Any, config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        output = method(input_ids, config, model_kwargs, *args, **kwargs)
        cache, generation = cache_of(model_kwargs), self._opening.generation
        if isinstance(cache, TurningCache):
            cache.turn(partial(_goes_on, weakref.ref(self), weakref.ref(generation)))
            if generation.is_compiled:
                self._twin.refresh()  # the host may have put hooks of its own on the model
        return output

    def is_answering(self, generation: Generation | None) -> bool:
        """Whether this run of `generate` is the one of this thread."""
        return generation is not None and self._opening.generation is generation


def _goes_on(owner: weakref.ref[StaticDecoding], generation: weakref.ref[Generation]) -> bool:
    decoding = owner()
    return decoding is not None and decoding.is_answering(generation())


def _entering(layer: int) -> Callable[..., Any]:
    """What the twin's layers are entered through; compiled with them."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = by_name(module, args, kwargs)
        held = cache_of(kwargs).layers[layer]
        if not isinstance(held, StaticRows):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = held.narrow_mask(kwargs.get("attention_mask"), hidden.shape[1], hidden.dtype)
        return args, {**kwargs, "attention_mask": mask}

    return enter
