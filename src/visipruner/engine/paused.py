"""Visual rows that do not run in a layer: when they come back, and the keys and values that text rows see of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from visipruner.contract.pruner import PromptRun
from visipruner.contract.routing import Routing
from visipruner.engine.deepstack import AddedFeatures
from visipruner.engine.edges import OtherKeys
from visipruner.engine.live_rows import LiveRows, Paused
from visipruner.engine.run_ahead import RunAhead, arguments_for


def is_resumed(
    layer: int,
    live: LiveRows,
    routing: Routing,
    first_layer: int,
    features: AddedFeatures | None,
    runs: Sequence[PromptRun],
) -> bool:
    """Whether the visual rows that pause run again from this layer on, or are needed as rows: to be looked at, to
    leave, to be added to. Rows that come in late pause unseen before `first_layer`."""
    if not live.paused.is_seen:
        return layer == first_layer
    if live.has_dropped or not routing.freezes_visual:
        return True
    is_added_to = features is not None and features.reaches(layer - 1)
    return is_added_to or any(run.observes_entry(layer) for run in runs)


def paused_keys(
    layer: int, paused: Paused, past: int, run_ahead: RunAhead, kwargs: dict[str, Any]
) -> list[OtherKeys | None] | None:
    """What text rows see of the `paused` rows, per example; None for all where no row pauses.

    `past`: logical rows already in the cache. `kwargs`: the layer's arguments as the host gives them.
    """
    if not paused.rows.total:
        return None
    given = arguments_for(paused.rows, paused.placed, kwargs)
    (_, keys, values), _ = run_ahead(layer, paused.states, given, keys_only=True)
    return [
        OtherKeys(
            keys[0, :, span],
            values[0, :, span],
            rows + past,
            bias=None,
            visual=torch.ones_like(rows, dtype=torch.bool),
        )
        for rows, span in zip(paused.rows.index, paused.rows.spans, strict=True)
    ]
