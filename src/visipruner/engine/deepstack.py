"""Features that a host adds to visual rows between layers (DeepStack), added to those of them still in play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from visipruner.engine.rows import Rows


class AddedFeatures:
    """What a host would add by itself, had its rows stayed where they were.

    Args:
        rows: `[batch, seq]` or `[batch, seq, 1]` bool, the n rows that receive features.
        features: `features[l]`, `[n, d]`, is added to the output of layer l; by layers, to what enters layer l.
    """

    def __init__(self, rows: Tensor, features: Sequence[Tensor] | Mapping[int, Tensor]) -> None:
        by_input = isinstance(features, Mapping)
        pairs = features.items() if isinstance(features, Mapping) else enumerate(features)
        self._features = {layer - by_input: part for layer, part in pairs}  # -1: of what enters the first layer
        self._place = torch.full((rows.numel(),), -1, device=rows.device)
        self._place[rows.flatten()] = torch.arange(int(rows.sum()), device=rows.device)

    def reaches(self, layer: int) -> bool:
        """Whether the output of `layer` is added to."""
        return layer in self._features

    def add(self, layer: int, hidden: Tensor, packed: Rows | None) -> Tensor:
        """The output of `layer` with its features: `[batch, seq, d]`, or `[1, n, d]` of the `packed` rows."""
        if not self.reaches(layer):
            return hidden
        place = self._place.to(hidden.device)
        place = place if packed is None else place[packed.flat]
        where = (place >= 0).nonzero().flatten()
        features = self._features[layer].to(hidden)[place[where]]
        flat = hidden.flatten(0, 1)
        return flat.index_copy(0, where, flat[where] + features).view(hidden.shape)
