"""What a pruner may look at: one example's attention in one layer, computed only when asked for."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor

from visipruner.influence import Influence, influence, last_row_attention


class LayerView:
    """One example in one layer, at its last prompt row.

    Attributes:
        query: `[heads, head_dim]` of the last row, after RoPE. keys, values: `[kv_heads, n, head_dim]`.
        visual: `[n_v]` long, columns of the visual tokens still present, in order.
        pairs: (query, key) pairs computed for scores so far, per head.
    """

    def __init__(
        self, query: Tensor, keys: Tensor, values: Tensor, visual: Tensor, scaling: float, allowed: Tensor | None
    ) -> None:
        self.query, self.keys, self.values, self.visual = query, keys, values, visual
        self._scaling, self._allowed = scaling, allowed
        self.pairs = 0

    @cached_property
    def attention(self) -> Tensor:
        """`[heads, n]` float32: the last row's softmax weights over all keys."""
        self.pairs += self.keys.shape[1]
        return last_row_attention(self.query, self.keys, self._scaling, self._allowed)

    @cached_property
    def influence(self) -> Influence:
        """The paper's score of every visual token still present."""
        return influence(self.attention, self.values, self.visual)
