"""TOPS: relevant, diverse and covering at once, chosen greedily in three stages.

"TOPS: First-Principles Visual Token Pruning via Constructing Token Optimal Preservation Sets for Efficient MLLM
Inference", 2026, arXiv 2606.27161.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import Budgeted, check_stages, chosen, first_sizes, parts_of
from visipruner.contract.choosing import first_smallest, scores_of
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, Positions, PromptRun
from visipruner.contract.settings import Fraction, Layer, Within
from visipruner.pruners.sparsevlm import find_raters

SAME = 1e-6  # copies of one state score alike but for rounding


@dataclass(frozen=True, kw_only=True)
class TOPS(Budgeted):
    """Of each stage's tokens, greedily: the first has the largest relevance r; then always the one with the largest
    r / mean r + diversity d / mean d + coverage c / mean c, means over the tokens not chosen yet. d = 1 - the largest
    cosine to a chosen token; c = the sum over tokens j not chosen of max(0, cos to j - j's largest cosine to a chosen
    one). Cosines are those of the hidden states that enter the layer.

    r is the class token's attention before the language model (received attention without one), and inside it the
    attention of the text rows that `SparseVLM` has rate, mean over rows and heads, in the layer before. Which rows
    rate is our reading of the paper. No released code was found.

    Attributes:
        keep_ratio, keep_tokens: the paper's T, here 128 of 576. layers: the stages, tokens leave before these.
        multiples: how many stay at each, in T. diversity: the paper's alpha. coverage: its lambda, 0.4 to 1 there.
        vision_layer: of the tower.
    """

    name: ClassVar[str] = "tops"
    about: ClassVar[About] = About(
        "TOPS: relevance, diversity and coverage, greedily in three stages",
        paper="Wang et al., 2026, arXiv 2606.27161",
        acts="before the language model and layers 12, 24",
        needs="vision tower's class attention, hidden states, text rows' attention",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 2 / 9
    layers: tuple[Layer, ...] = (0, 12, 24)
    multiples: tuple[Annotated[float, Within(0)], ...] = (2.0, 1.0, 0.25)
    diversity: Annotated[float, Within(0)] = 0.5
    coverage: Annotated[float, Within(0)] = 0.4
    vision_layer: int = -2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self.layers, self.multiples, "multiples")

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,) if 0 in self.layers else ()

    def start(self) -> PromptRun:
        return _TOPSRun(self)


class _TOPSRun(PromptRun):
    def __init__(self, config: TOPS) -> None:
        super().__init__()
        self._config, self._raters = config, torch.empty(0, dtype=torch.long)
        self._scored, self._scores = torch.empty(0, dtype=torch.long), torch.empty(0)

    def observes(self, layer: int) -> bool:
        return layer + 1 in self._config.layers

    def select(self, layer: int, view: LayerView) -> None:
        """Rates the tokens for the choice before the next layer."""
        raters = view.text_rows[self._raters.to(view.text_rows.device)]
        self._scored, self._scores = view.tokens, view.attention_from(raters) / max(raters.numel(), 1)

    def observes_entry(self, layer: int) -> bool:
        return layer == 0 or layer in self._config.layers

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        config = self._config
        if layer == 0:
            self._raters = find_raters(view)
        if layer not in config.layers:
            return None
        if layer == 0:
            self._scored, self._scores = view.tokens, view.salience(config.vision_layer)
        multiple = config.multiples[config.layers.index(layer)]
        parts, sizes = parts_of(view, config.scope), first_sizes(view, config.scope)
        counts = [
            min(len(part), round(multiple * config.budget(size))) for part, size in zip(parts, sizes, strict=True)
        ]
        return chosen(view, parts, counts, self._choose)

    def _choose(self, view: EntryView, count: int) -> Tensor:
        relevance = scores_of(view.tokens, self._scored, self._scores)
        weights = (1.0, self._config.diversity, self._config.coverage)
        return preserved(relevance, view.embeddings, count, weights).sort().values


def preserved(relevance: Tensor, states: Tensor, count: int, weights: tuple[float, float, float]) -> Tensor:
    """Positions of `count` of `states` `[n, d]` in the order in which `TOPS` chooses them; `relevance` `[n]`, `weights`
    of relevance, diversity and coverage. What is not a number is chosen last. O(n^2 count), n x n numbers are held."""
    unit = functional.normalize(states.float(), dim=-1)
    is_broken = unit.isnan().any(-1) | relevance.isnan()
    unit, relevance = unit.masked_fill(is_broken[:, None], 0), relevance.float().masked_fill(is_broken, 0)
    likeness, is_free = unit @ unit.T, (~is_broken).float()
    late = is_broken.float()  # how far behind in line
    nearest = torch.zeros_like(relevance)
    order = [torch.empty(0, dtype=torch.long, device=states.device)]
    for step in range(count):
        terms = [relevance]
        if step:
            terms += [1 - nearest, ((likeness - nearest[:, None]).clamp(min=0) * is_free[:, None]).sum(0)]
        means = [((term * is_free).sum() / is_free.sum().clamp(min=1)).clamp(min=1e-12) for term in terms]
        score = torch.stack([w * t / m for w, t, m in zip(weights, terms, means, strict=False)]).sum(0)
        best = first_smallest(torch.where(late > 0, late * 1e30, -score), SAME)
        order.append(best)
        is_free, late = is_free.index_fill(0, best, 0), late.index_fill(0, best, 2.0)
        found = likeness.index_select(1, best)[:, 0]
        nearest = torch.maximum(nearest, found) if step else found
    return torch.cat(order)
