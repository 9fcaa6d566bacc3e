"""What a layer of the cache will hold of the rows that run in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from visipruner.contract.routing import Routing
from visipruner.engine.cache import PrunedLayer, seal_first
from visipruner.engine.edges import OtherKeys, edge_values
from visipruner.engine.image_cache import SharedPrefix
from visipruner.engine.incoming import Incoming
from visipruner.engine.live_rows import LiveRows


class Storing:
    """Prepares the layers of a transformers cache for one forward of `seq` rows after `past` older ones.

    `owner`: weak reference to the engine, without which pruned layers refuse to go on.
    """

    def __init__(self, live: LiveRows, owner: Any, past: int, seq: int, shared: SharedPrefix | None) -> None:
        self._live, self._owner, self._past, self._seq, self._shared = live, owner, past, seq, shared

    def prepare(
        self, layer: int, cache: Any, routing: Routing, frozen: list[OtherKeys | None] | None
    ) -> tuple[Any, Sequence[OtherKeys | None] | None]:
        """Makes a layer of `cache` able to hold what it will bring; returns it, or None without a cache, and the keys
        that rows see besides their own. `frozen`: those of visual rows that do not run."""
        if cache is None:
            return None, frozen
        if cache.layer_class_to_replicate is not None:
            while len(cache.layers) <= layer:
                cache.layers.append(cache.layer_class_to_replicate())
        held = cache.layers[layer]
        live = self._live
        as_is = live.rows.is_whole and self._past == 0 and _stores_all(routing)
        if not live.is_packed or (as_is and not isinstance(held, PrunedLayer) and self._shared is None):
            return held, frozen
        pruned = cache.layers[layer] = PrunedLayer.replace(held, len(live.layouts), self._owner)
        if layer > 0:
            seal_first(cache)
        others: Sequence[OtherKeys | None] | None = frozen
        if self._past:
            turns = [pruned.past(example) for example in range(len(live.layouts))]
            beside = frozen or [None] * len(turns)
            others = [turn if rows is None else turn.joined(rows) for turn, rows in zip(turns, beside, strict=True)]
        incoming = live.once(("incoming", routing), partial(self._incoming, routing))
        pruned.incoming = incoming if frozen is None else replace(incoming, beside=frozen)
        if self._shared is not None:
            shared = self._shared.begin(layer, pruned)
            others = None if shared is None else [shared]
        return pruned, others

    def _incoming(self, routing: Routing) -> Incoming:
        """What later text rows could see of this layer: every row, text rows only, or merged values."""
        live = self._live
        incoming = Incoming(live.attending, self._past, self._seq)
        examples = range(len(live.layouts))
        if routing.visual_rows_attend and not _stores_all(routing):
            if routing.keeps_visual_keys:
                visual, counts = live.visual_places()
                change = partial(edge_values, routing.text_to_visual, visual=visual, counts=counts)
                return replace(incoming, transform=change)
            counts = [live.text_count(example) for example in examples]
            return replace(incoming, stored=live.text_places(), counts=counts)
        if routing.sink:
            return replace(incoming, bias=[live.sink_bias(example) for example in examples])
        return incoming


def _stores_all(routing: Routing) -> bool:
    return routing.visual_rows_attend and (routing.prompt_only or routing.text_to_visual == "attend")
