"""LLaVA-PruMerge: patches whose class attention is an outlier stay and take in the patches like them.

"LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv 2403.15388.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import PerImagePruner
from visipruner.contract.choosing import others, spread, top, union
from visipruner.contract.entry_view import EntryView, Image, Merge
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction, Number
from visipruner.contract.vision_view import VisionView


@dataclass(frozen=True, kw_only=True)
class PruMerge(PerImagePruner):
    """Per image: patches stay whose class attention a, all heads as one, lies above Q3 + 1.5 (Q3 - Q1) of its
    quartiles. Each becomes x_i + sum of a_j x_j over the `neighbours` patches with the most similar keys (cosine, all
    heads as one), and one token more is the sum of a_j x_j over all that left.

    With `plus`, PruMerge+, patches at even steps stay too: every (1 / ratio / 3)-th, ratio the outliers' share.

    As in the released code, sums are not divided by their weights, though the paper speaks of averages. That code
    merges before the projector, in the order of attention, and puts the further token last; here projected embeddings
    are merged, stay in the image's order, and the further token takes the place of the last patch that left. Without
    a class token that code fails; here a is the attention received, all heads as one (ours).

    Attributes:
        keep_ratio: None, the published way, for as many as stand out. With it or `keep_tokens` as many stay in all, the
            further token among them; with `plus` half of them evenly spread (ours).
        plus: see above. neighbours: see above. vision_layer: of the tower, whose keys and queries are taken.
    """

    name: ClassVar[str] = "prumerge"
    about: ClassVar[About] = About(
        "LLaVA-PruMerge(+): outliers of class attention take in the patches like them",
        paper="Shang et al., ICCV 2025, arXiv 2403.15388",
        acts="before the language model",
        needs="vision tower's class attention and keys",
    )
    merges: ClassVar[bool] = True
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction | None = None  # type: ignore[assignment]
    plus: bool = False
    neighbours: Number = 32
    vision_layer: int = -1

    def vision_layers(self, depth: int) -> tuple[int, ...]:
        return (self.vision_layer,)

    def with_share(self, share: float, model: Any, prompts: Any) -> Self:
        return replace(self, keep_tokens=None, keep_ratio=share)

    @property
    def is_adaptive(self) -> bool:
        return self.keep_tokens is None and self.keep_ratio is None

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        return self.choose(view, len(view.tokens)) if self.is_adaptive else super().select_entry(layer, view)

    def choose_in(self, image: Image, count: int, seen: Sequence[VisionView], embeddings: Tensor) -> Merge:
        tower = as_one_head(seen[0])
        attention, keys = tower.salience[image.tokens], tower.keys[0, image.tokens].float()
        choose = outliers if self.is_adaptive else best_and_even
        kept = choose(attention, count, self.plus)
        states = taking_in(kept, functional.normalize(keys, dim=-1), attention, embeddings.float(), self.neighbours)
        if len(kept) < count:
            gone = others(kept, len(attention))
            states = torch.cat([states, attention[None, gone] @ embeddings[gone].float()])
            kept = torch.cat([kept, gone[-1:]])
        return Merge(kept, states.to(embeddings))


def outliers(attention: Tensor, count: int, plus: bool) -> Tensor:
    """Ascending positions of those that stand out, of `count` at least one; see `PruMerge`."""
    if not count:
        return torch.arange(0, device=attention.device)
    low, high = attention.quantile(torch.linspace(0.25, 0.75, 2, device=attention.device))
    number = max(1, int((attention > high + 1.5 * (high - low)).sum()))
    even = torch.arange(0, count - 1, max(1, count // number // 3), device=attention.device)
    return union(top(attention, number), even) if plus else top(attention, number)


def best_and_even(attention: Tensor, count: int, plus: bool) -> Tensor:
    """Ascending positions of one fewer than `count`, but for one: the best, and with `plus` half of them spread out."""
    number = max(min(count, 1), count - 1)
    first = top(attention, number - number // 2 if plus else number)
    rest = others(first, len(attention))
    return union(first, rest[spread(number - len(first), len(rest), rest.device)])


def as_one_head(view: VisionView) -> VisionView:
    """`view` with the queries and keys of all heads in one vector each."""
    crops = []
    for crop in view.crops:
        queries, keys = (part.transpose(0, 1).flatten(1)[None] for part in (crop.queries, crop.keys))
        crops.append(replace(crop, queries=queries, keys=keys, scaling=queries.shape[-1] ** -0.5))
    return replace(view, crops=crops)


def taking_in(kept: Tensor, keys: Tensor, attention: Tensor, states: Tensor, neighbours: int) -> Tensor:
    """`[k, d]`: `states` `[n, d]` of the tokens `kept` `[k]`, and those of each one's nearest others, by unit `keys`
    `[n, e]`, times their `attention` `[n]`."""
    likeness = (keys[kept] @ keys.T).scatter(1, kept[:, None], float("-inf"))
    near = likeness.topk(max(min(neighbours, len(keys) - 1), 0), dim=-1).indices
    return states[kept] + (attention[near][..., None] * states[near]).sum(1)
