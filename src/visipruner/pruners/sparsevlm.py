"""SparseVLM: text rows that belong to the image rate its tokens; what leaves is recycled into a few merged tokens.

"SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025, arXiv 2410.04417.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from visipruner.contract.budget import Scope, best, check_stages, parts_of
from visipruner.contract.choosing import cluster_means, others, scores_of, top
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, DroppingPruner, Positions, PromptRun
from visipruner.contract.settings import Count, Fraction, Layer, Number

# Tokens of LLaVA-1.5's 576 kept after each of the three layers, by the average budget they are named for.
_COUNTS: dict[int, tuple[int, ...]] = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}


@dataclass(frozen=True, kw_only=True)
class SparseVLM(DroppingPruner):
    """Raters and ratings of the paper's first version.

    Raters are the text rows t after the image with mean_v softmax_t(V T^T) above its mean over t, V and T the
    embeddings before the first layer. After each of `layers`, score_j = mean over raters and heads of A[h, t, j]; the
    best stay. Of the others the best `recycle_ratio` and one more are clustered (density peaks among k nearest
    neighbours, one cluster for ten tokens and one more); each cluster's mean takes the place of its centre.

    The released code cuts positions to the new length, and so do we; but it appends merged tokens after the kept ones,
    and ours stay in the image's order, which later stages see: on small random models its and our third stage have 60
    to 70 % of their tokens in common. Where `keep` would keep all that are present it takes one out and recycles this
    one by itself, which then only changes its place; ours all stay. Its second version ("+") corrects ratings for RoPE
    and does not merge: not here.

    Attributes:
        layers: after these tokens leave. keep: how many stay then of `tokens`; other prompts in proportion.
        tokens: the number of visual tokens that `keep` was chosen for.
        recycle_ratio: fraction of the leaving tokens that is merged, with one more; 0 turns recycling off.
        scope: whether `keep` is in proportion to all images together or to each (see `Budgeted`). Tokens of several
            images are recycled together.
    """

    name: ClassVar[str] = "sparsevlm"
    about: ClassVar[About] = About(
        "SparseVLM: rated by the text rows of the image, leftovers merged",
        paper="Zhang et al., ICML 2025, arXiv 2410.04417",
        acts="after layers 2, 6, 15",
        needs="text rows' attention, embeddings",
    )
    merges: ClassVar[bool] = True
    published_positions: ClassVar[Positions] = "compact"

    layers: tuple[Layer, ...] = (2, 6, 15)
    keep: tuple[Count, ...] = _COUNTS[192]
    tokens: Number = 576
    recycle_ratio: Fraction = 0.3
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self.layers, self.keep, "keep")

    @classmethod
    def published(cls, budget: Literal[192, 128, 64]) -> Self:
        """The counts of one of the paper's budgets."""
        return cls(keep=_COUNTS[budget])

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """Every stage's fraction raised to the same power; 0.5 changes nothing."""
        power = math.log(min(1.0, max(share, 1e-3))) / math.log(0.5)
        return replace(self, keep=tuple(round(self.tokens * (count / self.tokens) ** power) for count in self.keep))

    def start(self) -> PromptRun:
        return _SparseRun(self)


class _SparseRun(PromptRun):
    def __init__(self, config: SparseVLM) -> None:
        super().__init__()
        self._config = config
        self._stages = dict(zip(config.layers, config.keep, strict=True))
        self._raters = torch.empty(0, dtype=torch.long)
        self._scored = torch.empty(0, dtype=torch.long)
        self._scores: Tensor | None = None
        self._first: list[int] = []

    def observes(self, layer: int) -> bool:
        return layer in self._stages

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        """Rates the tokens; decides which leave after the rows left this layer, where they can be merged."""
        raters = view.text_rows[self._raters.to(view.text_rows.device)]
        self._scored, self._scores = view.tokens, view.attention_from(raters) / raters.numel()
        return None

    def observes_entry(self, layer: int) -> bool:
        return layer == 0 or layer - 1 in self._stages

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        if layer == 0:
            self._first = [len(part) for part in parts_of(view, self._config.scope)]
            self._raters = find_raters(view)
        if layer - 1 not in self._stages or self._scores is None:
            return None
        counts = [round(self._stages[layer - 1] * first / self._config.tokens) for first in self._first]
        self._scores = scores_of(view.tokens, self._scored, self._scores)
        kept = best(self._scores, parts_of(view, self._config.scope), counts)
        return None if kept is None else self._recycle(view, kept)

    def _recycle(self, view: EntryView, kept: Tensor) -> Tensor | Merge:
        assert self._scores is not None
        if not self._config.recycle_ratio:
            return kept
        leaving = others(kept, len(view.tokens))
        count = int(leaving.numel() * self._config.recycle_ratio) + 1
        recycled = leaving[top(self._scores[leaving], count)]
        centres, means = cluster_means(view.embeddings[recycled].float(), recycled.numel() // 10 + 1)
        everyone = torch.cat([kept, recycled[centres]])
        states = torch.cat([view.embeddings[kept], means.to(view.embeddings)])
        order = everyone.argsort()
        return Merge(everyone[order], states[order])


def find_raters(view: EntryView) -> Tensor:
    """`[r]` long, ascending: which of the text rows rate; the last one where none stands out."""
    text = view.text
    after = (text > view.visual[-1]).nonzero().flatten()
    if not after.numel():
        return text.new_full((1,), text.numel() - 1)
    words = view.states[text[after]].float()
    relevance = (view.embeddings.float() @ words.T).softmax(-1).mean(0)
    chosen = (relevance > relevance.mean()).nonzero().flatten()
    return after[chosen] if chosen.numel() else after[-1:]
