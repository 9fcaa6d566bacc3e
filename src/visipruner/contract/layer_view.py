"""What a pruner may look at: one example's attention in one layer, computed only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from visipruner.contract.influence import Influence, influence, last_row_attention, masked, softcapped
from visipruner.contract.layout import TokenLayout

CHUNK = 64


class LayerView:
    """One example in one layer, after its attention ran.

    Attributes:
        keys, values: `[kv_heads, n, head_dim]`, after RoPE.
        columns: `[r]` long, where among the n keys the rows of this forward are; other columns are older turns.
        visual: `[n_v]` long, columns of the visual tokens still present, in order. tokens: `[n_v]` long, their numbers
            among the prompt's visual tokens. layout: the prompt's images.
        pairs: (query, key) pairs computed for scores so far, per head.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        rows: Tensor,
        columns: Tensor,
        visual: Tensor,
        tokens: Tensor,
        layout: TokenLayout,
        scaling: float,
        allowed: Callable[[Tensor], Tensor | None],
        softcap: float | None = None,
        *,
        last: int | None = None,
        last_sees_all: bool = False,
        visual_span: slice | None = None,
    ) -> None:
        """`queries`: `[heads, m, head_dim]`. `rows`: `[r]` long, those of them that are rows of this example.
        `allowed(i)`: `[len(i), n]` bool, keys that the i-th of these rows may see, float where a mask adds to the
        logits (-inf: not to be seen), or None for all. `softcap`: bound of the logits, in models that have one.

        What the caller knows without asking the device: `last`, which query is the last row's; whether that row sees
        all keys; `visual_span`, the columns of the visual tokens where they are unbroken."""
        self.keys, self.values, self.columns, self.visual = keys, values, columns, visual
        self.tokens, self.layout = tokens, layout
        self._queries, self._rows, self._scaling, self._allowed = queries, rows, scaling, allowed
        self._softcap, self._last, self._last_sees_all = softcap, last, last_sees_all
        self._visual_span = visual_span
        self.pairs = 0

    def positions_per_image(self) -> list[Tensor]:
        """`[k]` long for each image: where its tokens are among the visual tokens present."""
        return self.layout.per_image(self.tokens)

    @property
    def query(self) -> Tensor:
        """`[heads, head_dim]` of the last row, after RoPE."""
        return self._queries[:, int(self._rows[-1]) if self._last is None else self._last]

    def _seen_by_last(self) -> Tensor | None:
        """`[n]`: keys that the last row may see, as `masked` takes them, or None for all."""
        if self._last_sees_all:
            return None
        allowed = self._allowed(self._rows.new_full((1,), self._rows.numel() - 1))
        return None if allowed is None else allowed[0]

    @cached_property
    def attention(self) -> Tensor:
        """`[heads, n]` float32: the last row's softmax weights over all keys."""
        self.pairs += self.keys.shape[1]
        return last_row_attention(self.query, self.keys, self._scaling, self._seen_by_last(), self._softcap)

    @cached_property
    def sees_visual(self) -> bool:
        """Whether the last row may attend to any visual token at all: a sliding window may have moved past them."""
        seen = self._seen_by_last()
        if seen is None:
            return True
        visual = seen[self.visual]
        return bool((visual if visual.dtype == torch.bool else visual > float("-inf")).any())

    @cached_property
    def influence(self) -> Influence:
        """VisiPruner's score of every visual token still present."""
        where = self.visual if self._visual_span is None else self._visual_span
        return influence(self.attention, self.values, where)

    # ---- more than the last row -------------------------------------------------------------------------------------

    @cached_property
    def visual_rows(self) -> Tensor:
        """`[n_v]` long: which rows of this forward are the visual tokens still present."""
        return torch.isin(self.columns, self.visual).nonzero().flatten()

    @cached_property
    def text_rows(self) -> Tensor:
        """`[n_t]` long: the other rows of this forward."""
        return torch.isin(self.columns, self.visual, invert=True).nonzero().flatten()

    @cached_property
    def rows_after_images(self) -> Tensor:
        """`[k]` long: the text rows of this forward after the last visual token, which see the whole image."""
        return self.text_rows[self.text_rows > self.visual_rows[-1]]

    def attention_from(self, rows: Tensor) -> Tensor:
        """`[n_v]` float32: the weight that the given rows give each visual token, mean over heads, summed over rows."""
        total = torch.zeros(self.visual.numel(), device=self.visual.device)
        for weights in self.attention_of(rows):
            total += weights[..., self.visual].mean(0).sum(0)
        return total

    def attention_of(self, rows: Tensor) -> Iterator[Tensor]:
        """Softmax weights of the given rows of this forward, in order: chunks `[heads, <= 64, n]` float32.

        No whole map is ever held; take from each chunk what is needed and let it go.
        """
        heads, kv_heads = self._queries.shape[0], self.keys.shape[0]
        keys = self.keys.float().unsqueeze(1).transpose(2, 3)
        for part in torch.split(rows, CHUNK):
            self.pairs += part.numel() * self.keys.shape[1]
            queries = self._queries[:, self._rows[part]].float()
            groups = queries.view(kv_heads, heads // kv_heads, part.numel(), -1)
            logits = groups @ keys * self._scaling
            logits = masked(softcapped(logits, self._softcap), self._allowed(part))
            yield logits.softmax(-1).flatten(0, 1)
