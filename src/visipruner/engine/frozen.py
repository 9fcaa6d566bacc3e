"""Keys and values of visual rows in a layer that they do not run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from visipruner.engine.arguments import CACHE_NAMES, map_tensors, per_row
from visipruner.engine.entering import RunAhead
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
    given = {
        name: map_tensors(partial(waiting.placed.gather, seq_dim=dim), part) for name, part, dim in per_row(kwargs)
    }
    off = {name: None for name in ("attention_mask", *CACHE_NAMES) if name in kwargs}
    arguments = {**kwargs, **given, **off, "use_cache": False}
    (_, keys, values), _ = run_ahead(layer, waiting.states, arguments, keys_only=True)
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
