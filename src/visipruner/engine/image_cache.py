"""What several questions about one image share: all rows up to the end of the image, which no later row can change.

Causal attention never lets a row see the question behind it. As long as no visual token was dropped, states, keys and
values of these prefix rows are therefore those of the prompt before; once some were, they depend on which ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.adapters.structure import FROM_FIRST
from visipruner.contract.pruner import PromptRun
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.calls import map_tensors, per_row
from visipruner.engine.edges import OtherKeys, PackedExample
from visipruner.engine.host import Host
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.masks import HostMask
from visipruner.engine.soft import is_biased
from visipruner.errors import UnsupportedModelError


@dataclass(eq=False)
class Prefix:
    """The rows of one prompt up to the end of its last image, as far as layers ran with all of them.

    Attributes:
        length: host rows. embeds: `[1, length, d]`. visibility: which of these rows are no padding, and what
            whole masks let them see of each other. placed: the decoder's per-row arguments for these rows.
        hidden: `hidden[l]`, `[1, n, d]`, enter layer l; one entry more than layers known.
        seen: `seen[l]`, what attention of layer l was given for these rows. stored: `stored[l]`, what later rows need.
    """

    length: int
    embeds: Tensor
    visibility: Any = None
    placed: dict[str, Any] = field(default_factory=dict)
    hidden: list[Tensor] = field(default_factory=list)
    seen: list[OtherKeys] = field(default_factory=list)
    stored: list[OtherKeys] = field(default_factory=list)

    def matches(self, embeds: Tensor, visibility: Any) -> bool:
        """Whether a prompt `[1, seq, d]` begins with these rows, and they see of each other what they saw."""
        same = embeds.shape[1] > self.length and embeds.dtype == self.embeds.dtype
        return same and torch.equal(embeds[:, : self.length], self.embeds) and _same(visibility, self.visibility)

    def is_placed_alike(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether a layer is given the same positions for these rows; the first layer asked sets them."""
        placed = {name: map_tensors(_beginning(self.length, dim), given) for name, given, dim in per_row(kwargs)}
        if not self.placed:
            self.placed = placed
            return True
        return placed.keys() == self.placed.keys() and all(_equal(placed[name], self.placed[name]) for name in placed)

    def copied(self) -> Prefix:
        """The same states in lists of their own."""
        return replace(self, placed={**self.placed}, hidden=[*self.hidden], seen=[*self.seen], stored=[*self.stored])

    def forget(self) -> None:
        """Keeps only which rows these are."""
        self.placed = {}
        self.hidden, self.seen, self.stored = [], [], []


def _beginning(length: int, dim: int) -> Callable[[Tensor], Tensor]:
    return lambda part: part.narrow(dim, 0, length).clone()


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(map(torch.equal, one, other))


def check_image_cache(host: Host) -> None:
    """Raises UnsupportedModelError where a model's prefix is more than its rows' embeddings, keys and values: a state
    that passes on, or features of the image that are added to blank rows."""
    if host.states or host.adapter.added_features == FROM_FIRST:
        what = "pass a state from row to row" if host.states else "are given the image between them"
        raise UnsupportedModelError(
            f"Layers of {host.adapter.family} {what}, which image_cache() cannot share; leave it out."
        )


class ImageCache:
    """Memory of the last image (or images) that prompts began with. Holds as much as the rows of one prompt need:
    hidden states of every layer, keys and values. May outlive the handle it was used with.

    Attributes:
        reused: prompts that found their image here. read: prompts that did not.
    """

    def __init__(self) -> None:
        self.reused = self.read = 0
        self._owner: Any = None
        self._prefix: Prefix | None = None
        self._features: tuple[Any, Any] | None = None  # a call's arguments, and the features

    def bind(self, owner: Any) -> None:
        """Forgets everything where `owner`, what the states belong to, is another than before."""
        if owner != self._owner:
            self.clear()
            self._owner = owner

    def clear(self) -> None:
        """Forgets the image."""
        self._owner = self._prefix = self._features = None

    def prefix_for(self, embeds: Tensor, length: int, visibility: Any) -> Prefix:
        """The known prefix of a prompt `[1, seq, d]` whose first `length` rows end with its image, or a new one.

        It is the prompt's own, for another thread may read one meanwhile; `keep` makes it known.
        """
        known = self._prefix
        if known is not None and known.length == length and known.matches(embeds, visibility):
            self.reused += 1
            return known.copied()
        self.read += 1
        self._prefix = known = None  # its memory goes before the new one's comes
        return Prefix(length, embeds[:, :length].clone(), _copied(visibility))

    def keep(self, prefix: Prefix) -> None:
        """Remembers the prefix of a prompt that was read."""
        self._prefix = prefix

    @contextmanager
    def remembering(self, embedder: nn.Module) -> Iterator[None]:
        """Lets `embedder.get_image_features` answer from memory when it is asked the same twice."""
        original = getattr(embedder, "get_image_features", None)
        if original is None:
            yield
            return

        @wraps(original)  # `generate` asks for its signature
        def remembered(*args: Any, **kwargs: Any) -> Any:
            known = self._features  # looked at once: another thread may ask for its own image meanwhile
            if known is None or not _same(known[0], (args, kwargs)):
                features = original(*args, **kwargs)
                known = self._features = (_copied((args, kwargs)), features)
            return known[1]

        embedder.get_image_features = remembered  # type: ignore[assignment]
        try:
            yield
        finally:
            del embedder.get_image_features


def _beginning_of(mask: Any, length: int) -> Any:
    """What whole masks, one or one for each kind of layer, let the first `length` rows see of each other."""
    if isinstance(mask, Mapping):
        return {kind: _beginning_of(part, length) for kind, part in mask.items()}
    return mask[..., :length, :length] if isinstance(mask, Tensor) and mask.ndim == 4 else None


def _copied(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.clone()
    if isinstance(given, (list, tuple)):
        return type(given)(map(_copied, given))
    return {key: _copied(value) for key, value in given.items()} if isinstance(given, dict) else given


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, (list, tuple)):
        return isinstance(other, type(one)) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return bool(one == other)


class SharedPrefix:
    """One prompt's use of a prefix: its rows rest in layers that they went through before, and run in the others.

    Attributes:
        is_folded: True while the prefix rows rest.
    """

    def __init__(self, cache: ImageCache, embeds: Tensor, length: int, real: Tensor, mask: Any) -> None:
        """`real`: `[seq]` bool, rows that are no padding. `mask`: the attention mask that the decoder was given."""
        self.is_folded = False
        visibility = (real[:length], _beginning_of(mask, length))
        self._cache, self._prefix = cache, cache.prefix_for(embeds, length, visibility)
        self._seq = embeds.shape[1]
        self._is_untouched = True  # until a visual token leaves or is merged; those that stay then run in every layer
        self._held: PrunedLayer | None = None

    def before_look(
        self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any], live: LiveRows, run: PromptRun
    ) -> Tensor:
        """All rows run, packed, where the pruner looks at them or tokens left; what enters the layer is noted."""
        if is_biased(layer, [run]):
            raise UnsupportedModelError("A method that biases attention cannot share images; leave image_cache() out.")
        if layer == 0:
            if not self._prefix.is_placed_alike(kwargs):
                self._prefix.forget()
                self._prefix.is_placed_alike(kwargs)
            hidden = live.repack(hidden)
        if live.has_dropped or run.observes_entry(layer):
            hidden = self._unfolded(layer, hidden, live)
        self._note_entry(layer, hidden, live)
        if live.has_dropped:
            self._is_untouched = False
            hidden = live.repack(hidden)
        return hidden

    def after_look(self, layer: int, hidden: Tensor, live: LiveRows, is_changed: bool, reads_queries: bool) -> Tensor:
        """Lets the prefix rows rest where their way through the layer is known and nobody reads their queries."""
        if live.has_dropped or is_changed:
            self._is_untouched = False
        if reads_queries or not self._knows(layer):
            return self._unfolded(layer, hidden, live)
        if not self.is_folded:
            hidden = live.fold(self._prefix.length, hidden)
            self.is_folded = True
        return hidden

    def begin(self, layer: int, cache: PrunedLayer) -> OtherKeys | None:
        """A layer's cache begins with what resting rows left; returns the keys and values that attention adds."""
        self._held = cache
        if not self.is_folded:
            return None
        cache.seed(self._prefix.stored[layer], self._prefix.length)
        assert cache.incoming is not None
        cache.incoming = replace(cache.incoming, logical=cache.incoming.logical - self._prefix.length)
        return self._prefix.seen[layer]

    def note_attention(self, layer: int, part: PackedExample, keys: Tensor, values: Tensor, mask: HostMask) -> None:
        """Keeps what an unfolded layer's attention is given for the prefix rows; `[kv_heads, n, head_dim]` of all.

        Raises UnsupportedModelError where prefix rows see the question.
        """
        if not self._is_untouched or len(self._prefix.seen) != layer:
            return
        assert self._held is not None
        length = self._prefix.length
        mine = part.rows < length
        rows = part.rows[mine]
        if mask.tensor is not None:
            later = torch.arange(length, self._seq, device=rows.device)
            _check_closed(mask.allowed(0, rows, later))
        is_visual = torch.zeros_like(part.rows, dtype=torch.bool).index_fill(0, part.visual, True)
        bias = None if part.bias is None else part.bias[mine]
        seen = OtherKeys(keys[:, mine], values[:, mine], rows, bias, is_visual[mine])
        self._prefix.seen.append(seen)
        self._prefix.stored.append(_stored(self._held, length, seen))

    def complete(self, layers: int, hidden: Tensor, live: LiveRows) -> Tensor:
        """After the last layer: all rows, for hosts that want them all."""
        self._note_entry(layers, hidden, live)
        self._cache.keep(self._prefix)
        return self._unfolded(layers, hidden, live)

    def _knows(self, layer: int) -> bool:
        return self._is_untouched and layer < len(self._prefix.seen)

    def _note_entry(self, layer: int, hidden: Tensor, live: LiveRows) -> None:
        if self._is_untouched and not self.is_folded and len(self._prefix.hidden) == layer:
            count = int((live.rows.index[0] < self._prefix.length).sum())
            self._prefix.hidden.append(hidden[:, :count].clone())

    def _unfolded(self, layer: int, hidden: Tensor, live: LiveRows) -> Tensor:
        if not self.is_folded:
            return hidden
        self.is_folded = False
        return live.unfold(self._prefix.hidden[layer], hidden)


def _stored(held: PrunedLayer, length: int, seen: OtherKeys) -> OtherKeys:
    """What the cache keeps of the first `length` rows; shares memory with `seen` where that is the same."""
    found = held.past(0)
    old = found.columns < length
    keys, values, columns = found.keys[:, old], found.values[:, old], found.columns[old]
    if torch.equal(columns, seen.columns) and torch.equal(values, seen.values):
        return seen
    bias = None if found.bias is None else found.bias[old]
    return OtherKeys(keys, values, columns, bias, torch.zeros_like(columns, dtype=torch.bool))


def _check_closed(allowed: Tensor) -> None:
    if bool(allowed.any()):
        raise UnsupportedModelError(
            "In this model the rows of an image attend to the question behind it, so their states cannot be shared "
            "between questions; leave image_cache() out."
        )
