"""DART: tokens that resemble a few pivots are duplicates, the others stay.

"Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP 2025,
arXiv 2502.11494.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import Budgeted, chosen, parts_of
from visipruner.contract.choosing import best_first
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun
from visipruner.contract.settings import Count, Layer
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Dart(Budgeted):
    """Pivots are the visual tokens and the text rows after the image with the longest keys (L1, after RoPE). RoPE turns
    these lengths, so under padding on the left the layer's keys are projected once more, from position 0 on.

    Each pivot in turn keeps those of the remaining visual tokens whose hidden states are least like its own (cosine),
    until the budget is met. Visual pivots stay; text pivots are text. No attention is looked at.

    The released code gives every pivot the same quota, rounded, and so misses its budget by a few tokens; ours is
    exact. It goes through its pivots in the arbitrary order of a Python set, we by length, longest first, which changes
    6 % of the tokens. It takes the hidden states after the decoder's final norm, which the paper does not mention; we
    take them as they enter `layer`. Ports differ in what becomes of positions; here they are kept.

    Attributes:
        layer: the first layer without the dropped tokens; keys are those of the layer before.
        pivot_image, pivot_text: how many pivots of each kind.
    """

    name: ClassVar[str] = "dart"
    about: ClassVar[About] = About(
        "DART: near duplicates of a few pivots leave",
        paper="Wen et al., EMNLP 2025, arXiv 2502.11494",
        acts="before layer 2",
        needs="keys, hidden states",
    )

    layer: Layer = 2
    pivot_image: Count = 4
    pivot_text: Count = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1 or not self.pivot_image + self.pivot_text:
            raise ConfigError("dart needs layer >= 1 and at least one pivot.")

    def start(self) -> PromptRun:
        return _DartRun(self)


class _DartRun(PromptRun):
    def __init__(self, config: Dart) -> None:
        super().__init__()
        self._config = config
        self._by_length = torch.empty(0)  # numbers of visual tokens, once known
        self._text_pivots = torch.empty(0)

    def observes(self, layer: int) -> bool:
        return layer == self._config.layer - 1

    def select(self, layer: int, view: LayerView) -> None:
        if not self._by_length.numel():
            keys = view.keys[:, view.columns]
            self._remember(keys, view.tokens, view.visual_rows, view.text_rows)

    def _remember(self, keys: Tensor, tokens: Tensor, visual: Tensor, text: Tensor) -> None:
        """The pivots, by the `keys` `[kv_heads, n, head_dim]` of the rows: visual tokens by number, text rows by place
        among the text."""
        length = keys.float().abs().sum((0, 2))
        self._by_length = tokens[best_first(length[visual])]
        after = (text > visual[-1]).nonzero().flatten()
        self._text_pivots = after[best_first(length[text[after]])[: self._config.pivot_text]]

    def observes_entry(self, layer: int) -> bool:
        return layer in (self._config.layer - 1, self._config.layer)

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        if layer < self._config.layer:
            if view.is_padded_before:
                keys = view.project(torch.arange(len(view.states), device=view.visual.device)).keys
                self._remember(keys, view.tokens, view.visual, view.text)
            return None
        parts = parts_of(view, self._config.scope)
        return chosen(view, parts, [self._config.budget(len(part)) for part in parts], self._choose)

    def _choose(self, view: EntryView, count: int) -> Tensor:
        by_length, text_pivots = self._by_length.to(view.tokens.device), self._text_pivots.to(view.tokens.device)
        present = by_length[torch.isin(by_length, view.tokens)]
        pivots = torch.searchsorted(view.tokens, present[: min(self._config.pivot_image, count)])
        anchors = torch.cat([view.embeddings[pivots], view.states[view.text[text_pivots]]]).float()
        return least_alike(view.embeddings.float(), pivots, anchors, count)


def least_alike(states: Tensor, pivots: Tensor, anchors: Tensor, count: int) -> Tensor:
    """Ascending positions of `pivots` and of those of `states` `[n, d]` least like `anchors` `[p, d]`, `count` in all.

    Each anchor in turn takes its share of what is left; the first ones take one more where shares are uneven.
    """
    free = torch.ones(len(states), dtype=torch.bool, device=states.device)
    free[pivots] = False
    wanted = count - len(pivots)
    quotas = [len(part) for part in torch.arange(wanted).tensor_split(max(len(anchors), 1))]
    for anchor, quota in zip(anchors, quotas, strict=False):
        likeness = functional.cosine_similarity(anchor[None], states, dim=-1).masked_fill(~free, float("inf"))
        free[likeness.argsort(stable=True)[:quota]] = False
    return (~free).nonzero().flatten()
