"""Keys and values of visual rows in a layer that they do not run."""

from __future__ import annotations

from typing import Any

import torch

from visipruner.engine.entering import RunAhead, arguments_for
from visipruner.engine.present import Waiting
from visipruner.engine.routed import OtherKeys


def frozen_keys(
    layer: int, waiting: Waiting, past: int, run_ahead: RunAhead, kwargs: dict[str, Any]
) -> list[OtherKeys | None]:
    """What text rows see of the `waiting` rows, per example; None for all where no row waits.

    `past`: logical rows already in the cache. `kwargs`: the layer's arguments as the host gives them.
    """
    if not waiting.rows.flat.numel():
        return [None] * len(waiting.tokens)
    given = arguments_for(waiting.placed, kwargs)
    (_, keys, values), _ = run_ahead(layer, waiting.states, given, keys_only=True)
    return [
        OtherKeys(
            keys[0, :, span],
            values[0, :, span],
            rows + past,
            bias=torch.zeros_like(rows, dtype=torch.float32),
            visual=torch.ones_like(rows, dtype=torch.bool),
        )
        for rows, span in zip(waiting.rows.index, waiting.rows.spans(), strict=True)
    ]
