"""Visual rows in some layers only: the method that an aligned model carries, with hard choices when it answers and soft
ones while it learns them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.choosing import top
from visipruner.contract.entry_view import EntryView
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.contract.routing import FROZEN, PLAIN, Routing
from visipruner.contract.training_run import TrainingPruner, TrainingRun
from visipruner.training.gates import Asked, VisualGates
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
        return top(self.scores(view)[0], self.keep)

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


# A layer that visual rows are in with less than this probability runs without them.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Guide(TrainingPruner):
    """Hands the gates' settings to the engine. Lives with one aligned model; not a method of its own.

    Learnt start and exit, while learning: a layer has visual rows with probability p. log p is added to every logit
    of a visual key, and visual rows take over the share p of the layer's update: p = 0 is a layer without visual
    rows, p = 1 a plain one, exactly.
    Sparse middle, while learning: after the filter layer a visual key's logit has log g added, g the gate of its
    token for the question that the row belongs to (visual rows: the most open gate of all questions). Once annealed,
    one question's tokens really leave; where several questions share an example the gates become 0 or 1.
    """

    name: ClassVar[str] = "aligned"

    source: Callable[[], VisualGates]

    @property
    def gates(self) -> VisualGates:
        """Those in use: peft trains a copy."""
        return self.source()

    def first_layer(self) -> int:
        return _first_layer(self.gates)

    def routing(self, layer: int) -> Routing:
        return FROZEN if layer in self.gates.settings.frozen_layers else PLAIN

    def start(self) -> PromptRun:
        gates = self.gates
        asked = next(gates.pending, None)
        if not gates.training:
            return StagedRun(gates.settings.keep_tokens, gates.settings.filter_layer, gates.exit_layer, asked)
        return LearningRun(gates, asked)


def _first_layer(gates: VisualGates) -> int:
    if not gates.training or gates.start is None:
        return gates.inject_layer
    likely = [layer for layer in range(gates.num_layers) if _is_likely(gates, layer)]
    return likely[0] if likely else gates.inject_layer


def _is_likely(gates: VisualGates, layer: int) -> bool:
    presence = gates.presence(layer)
    return presence is None or float(presence.detach()) >= _NEGLIGIBLE


class LearningRun(StagedRun, TrainingRun):
    """One prompt while the model learns."""

    def __init__(self, gates: VisualGates, asked: Asked | None) -> None:
        super().__init__(gates.settings.keep_tokens, gates.settings.filter_layer, gates.exit_layer, asked)
        self._gates = gates
        self._log_gates: Tensor | None = None  # [questions, n_v], once the filter layer ran
        if gates.exit is not None:
            unlikely = [
                layer for layer in range(_first_layer(gates) + 1, gates.num_layers) if not _is_likely(gates, layer)
            ]
            self.exit_layer = unlikely[0] if unlikely else None

    @property
    def _is_shared(self) -> bool:
        return self.asked is not None and len(self.asked.rows) > 1

    @property
    def _is_masked(self) -> bool:
        """Whether tokens are gated by edges; else they leave."""
        return self._is_shared or not self._gates.is_hard

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        assert self.keep is not None
        if not self._is_masked:
            kept = super().select(layer, view)
            self._gates.kept.append(float(min(self.keep, len(view.visual))))
            return kept
        scores = self.scores(view)
        if self._gates.is_hard:
            keep = min(self.keep, scores.shape[-1])
            closed = torch.full_like(scores, float("-inf"))
            found = closed.scatter(-1, scores.detach().topk(keep, dim=-1).indices, 0.0)
        else:
            found = log_gates(scores, self.keep, self._gates.temperature)
        if self._log_gates is None:
            self._log_gates = found
            self._gates.kept += found.detach().exp().sum(-1).tolist()
        return None

    def biases(self, layer: int) -> bool:
        sparse = self.filter_layer is not None and self._is_masked and layer >= self.filter_layer
        return sparse or self._gates.presence(layer) is not None

    def edge_bias(self, layer: int, rows: Tensor, visual: Tensor) -> Tensor | None:
        bias: Tensor | None = None
        presence = self._gates.presence(layer)
        if presence is not None and bool(visual.any()):
            bias = presence.clamp(min=_NEGLIGIBLE**2).log() * visual.float()
            bias = bias.expand(len(rows), -1)
        if self._log_gates is None or self.filter_layer is None or layer <= self.filter_layer or not visual.any():
            return bias
        sparse = self._sparse_bias(self._log_gates, rows, visual)
        return sparse if bias is None else bias + sparse

    def _sparse_bias(self, log_gates: Tensor, rows: Tensor, visual: Tensor) -> Tensor:
        """`[n, n]`: per row the gates of its question, in the columns of the visual tokens."""
        lowest = torch.finfo(torch.float32).min / 4
        every = log_gates.clamp(min=lowest)
        every = torch.cat([every, every.max(0, keepdim=True).values])  # the last: rows of all questions
        whose = torch.full_like(rows, -1)
        if self.asked is not None and self.asked.owner is not None:
            whose = self.asked.owner.to(rows)[rows]
        elif not self._is_shared:
            whose = torch.zeros_like(rows)
        columns = visual.nonzero().flatten()
        per_row = every[whose]
        # A visual row sees itself whatever its own gate says.
        own = rows[columns][None] == rows[:, None]
        per_row = torch.where(own, torch.zeros_like(per_row), per_row)
        return per_row.new_zeros(len(rows), len(rows)).index_copy(1, columns, per_row)

    def output_share(self, layer: int) -> Tensor | None:
        return self._gates.presence(layer)
