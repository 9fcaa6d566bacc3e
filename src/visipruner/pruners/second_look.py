"""A second look: an even grid first, and later, layer by layer, what the question's rows use of it. Ours.

`visipruner analyze` finds the fusion of picture and question at several depths of some models; VisiPruner
(arXiv 2510.17205) filters at one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from visipruner.contract.budget import Scope, best, check_keep_ratios, first_sizes, parts_of
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, DroppingPruner
from visipruner.contract.routing import PLAIN, Routing
from visipruner.contract.settings import Count, Fraction, Layer
from visipruner.errors import ConfigError
from visipruner.pruners.priortr import beyond_prior
from visipruner.pruners.uniform import UniformPruner
from visipruner.pruners.visipruner import VisiPruner


@dataclass(frozen=True, kw_only=True)
class SecondLook(DroppingPruner):
    """Cover early, choose late. Before `cover_layer` an even grid of `cover_ratio` of the tokens stays. After each of
    `layers` the best of those present stay, judged there anew; before `exit_layer` all leave. Nothing is detected, and
    nobody votes. Shallow layers are VisiPruner's. Default layers: 6, 12, 16 and 24 of a model of 30 layers
    that was analysed, at the same depth of 32.

    Attributes:
        layers: filter layers; tokens are judged in them and leave after them.
        keep_ratios: fractions of the prompt's visual tokens that stay after each; they cannot grow.
        score: of token j, summed over the rows that judge. "influence": ||c_j||, the length of what j brings to the
            row's attention output; "attention": mean over heads; "prior": `PriorTR`'s P log(P / Q), P the rows' mean.
        rows: "question" is every row after the last image, "last" the prompt's last row.
        cover_layer, cover_ratio: the even grid; None or 1 for none. exit_layer: the first one without vision, or None.
        shallow_end, shallow_visual: as in `VisiPruner`; 0 for no shallow layers.
        scope: whether ratios are of all images together or of each (see `Budgeted`).
    """

    name: ClassVar[str] = "second-look"
    about: ClassVar[About] = About(
        "a second look: an even grid early, the question's choice in several later layers",
        acts="before layer 6, after layers 13, 17, before layer 26",
        needs="attention and values, of the question's rows",
    )

    layers: tuple[Layer, ...] = (13, 17)
    keep_ratios: tuple[Fraction, ...] = (0.125, 0.0625)
    score: Literal["influence", "attention", "prior"] = "influence"
    rows: Literal["question", "last"] = "question"
    cover_layer: Layer | None = 6
    cover_ratio: Fraction = 0.25
    exit_layer: Layer | None = 26
    shallow_end: Count = 0
    shallow_visual: Literal["prefix", "ffn"] = "prefix"
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep_ratios(self.layers, self.keep_ratios)
        if self.layers and self.layers[0] < self.shallow_end:
            raise ConfigError(
                f"{self.name} cannot filter in layer {self.layers[0]}: text rows do not see the image before layer "
                f"{self.shallow_end}, shallow_end, at which layers can begin."
            )

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """The grid, or the first choice where there is none, keeps `share`; what follows, the same part of that."""
        has_grid = self.cover_layer is not None and self.cover_ratio < 1
        most = max(self.cover_ratio if has_grid else max(self.keep_ratios, default=1.0), 1e-6)
        ratios = tuple(min(1.0, share * ratio / most) for ratio in self.keep_ratios)
        return replace(self, keep_ratios=ratios, cover_ratio=share if has_grid else 1.0)

    def routing(self, layer: int) -> Routing:
        if layer >= self.shallow_end:
            return PLAIN
        return VisiPruner(shallow_end=self.shallow_end, shallow_visual=self.shallow_visual).routing(layer)

    def observes_entry(self, layer: int) -> bool:
        return layer == self.exit_layer or (layer == self.cover_layer and self.cover_ratio < 1)

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        if layer == self.exit_layer:
            return view.tokens[:0]
        return UniformPruner(keep_ratio=self.cover_ratio, scope=self.scope).select_entry(layer, view)

    def observes(self, layer: int) -> bool:
        return layer in self.layers

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        ratio = self.keep_ratios[self.layers.index(layer)]
        counts = [round(ratio * size) for size in first_sizes(view, self.scope)]
        return best(self._scores(view), parts_of(view, self.scope), counts)

    def _scores(self, view: LayerView) -> Tensor:
        """`[n_v]`, see `score`."""
        if self.score == "prior":
            return beyond_prior(view, self.rows, self.scope)
        judges = view.rows_after_images if self.rows == "question" else view.rows_after_images[-1:]
        if self.score == "attention":
            return view.attention_from(judges)
        lengths: Tensor = torch.linalg.vector_norm(view.values[:, view.visual].float(), dim=-1)
        scores = torch.zeros(lengths.shape[-1], device=lengths.device)
        for weights in view.attention_of(judges):
            brought = weights[..., view.visual] * lengths.repeat_interleave(len(weights) // len(lengths), 0)[:, None]
            scores += torch.linalg.vector_norm(brought, dim=0).sum(0)
        return scores
