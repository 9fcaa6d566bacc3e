"""Visual rows in some layers only: the method that an aligned model carries, also usable on any model untrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.contract.routing import FROZEN, PLAIN, Routing
from visipruner.training.gates import Asked
from visipruner.training.settings import Alignment

_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class StagedVision(Pruner):
    """Visual rows enter before `inject_layer`, pause in `frozen_layers`, `keep_tokens` of them go on after
    `filter_layer`, and they leave before `exit_layer` (the guidelines of section 6, "VisiPruner", EMNLP 2025).

    Meant for models trained that way (`visipruner.training.align`); attached to another it shows what the training is
    for. See `Alignment` for the settings.
    """

    name: ClassVar[str] = "staged-vision"
    about: ClassVar[About] = About(
        "visual rows in some layers only", paper="EMNLP 2025, section 6", acts="fixed layers", needs="influence"
    )

    inject_layer: int = 0
    exit_layer: int | None = None
    keep_tokens: int | None = None
    filter_layer: int | None = None
    frozen_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._alignment()

    def _alignment(self) -> Alignment:
        names = ("inject_layer", "exit_layer", "keep_tokens", "filter_layer", "frozen_layers")
        return Alignment(**{name: getattr(self, name) for name in names})

    def check(self, num_layers: int) -> None:
        self._alignment().check(num_layers)

    def first_layer(self) -> int:
        return self.inject_layer

    def routing(self, layer: int) -> Routing:
        return FROZEN if layer in self.frozen_layers else PLAIN

    def start(self) -> PromptRun:
        return StagedRun(self.keep_tokens, self.filter_layer, self.exit_layer)


class StagedRun(PromptRun):
    """One prompt: the choice at the filter layer, and the exit."""

    def __init__(
        self, keep: int | None, filter_layer: int | None, exit_layer: int | None, asked: Asked | None = None
    ) -> None:
        super().__init__()
        self.keep, self.filter_layer, self.exit_layer, self.asked = keep, filter_layer, exit_layer, asked

    def observes_entry(self, layer: int) -> bool:
        return layer == self.exit_layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        return view.visual[:0]

    def observes(self, layer: int) -> bool:
        return layer == self.filter_layer

    @torch.no_grad()
    def select(self, layer: int, view: LayerView) -> Tensor | None:
        assert self.keep is not None
        return top_tokens(self.scores(view)[0], self.keep)

    def scores(self, view: LayerView) -> Tensor:
        """`[questions, n_v]` float32, log of the tokens' influence on each question's last prompt row."""
        last = len(view.columns) - 1
        rows = view.columns.new_zeros(1) if self.asked is None else self.asked.rows.to(view.columns)
        # A prompt's last rows are text and never leave, so counting from the end survives what left before.
        weights = torch.cat(list(view.attention_of(last - rows)), dim=1)
        return log_influence(weights, view.values, view.visual)


def log_influence(attention: Tensor, values: Tensor, visual: Tensor) -> Tensor:
    """`[rows, n_v]` float32, log ||c_j|| for every row, differentiable.

    The paper's influence (section 4.2): the length of what token j brings to a row's attention output,
    ||c_j|| = ||concat_h a_hj v_hj||.

    Args:
        attention: `[heads, rows, n]` float32 softmax weights. values: `[kv_heads, n, head_dim]`.
        visual: `[n_v]` long, columns of the visual tokens.
    """
    weights = attention[..., visual].square()
    lengths = values[:, visual].float().square().sum(-1)
    groups = weights.view(lengths.shape[0], -1, *weights.shape[1:])
    return 0.5 * ((groups * lengths[:, None, None]).sum((0, 1)) + _LEAST).log()


def log_gates(scores: Tensor, keep: int, temperature: float) -> Tensor:
    """`[rows, n_v]`: log of sigmoid((score - threshold) / temperature), the threshold halfway between the n-th and
    the next score. Its exponentials sum to about `keep`; at temperature 0 they are the top n."""
    if keep >= scores.shape[-1]:
        return torch.zeros_like(scores)
    best = scores.detach().topk(keep + 1, dim=-1).values
    threshold = (best[..., keep - 1] + best[..., keep])[..., None] / 2
    return torch.nn.functional.logsigmoid((scores - threshold) / temperature)


def top_tokens(scores: Tensor, keep: int) -> Tensor:
    """`[k]` long, ascending positions of the `keep` largest of `[n_v]` scores, ties to the first."""
    order = scores.sort(descending=True, stable=True).indices
    return order[:keep].sort().values
