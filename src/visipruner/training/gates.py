"""What an aligned model learns about its own depth, and the state of the annealing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visipruner.training.settings import Alignment


@dataclass(frozen=True)
class Asked:
    """The questions of one example, for which the sparse middle chooses tokens.

    Attributes:
        rows: `[q]` long, per question the row that chooses (its last prompt row), counted back from the example's
            last row: 0 is the last.
        owner: `[seq]` long, per row of the forward the number of its question, -1 for rows of all questions. None:
            one question, and the rows are all its own.
    """

    rows: Tensor
    owner: Tensor | None = None


class DepthGate(nn.Module):
    """Which layer of `first .. last` something happens at: softmax(logits / temperature).

    While learning every layer sees the probability that it has happened by then; the choice itself is the most
    probable layer. A cost per layer moves the probabilities, and the annealed temperature makes them certain.
    """

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.logits = nn.Parameter(torch.zeros(last - first + 1))

    def probabilities(self, temperature: float) -> Tensor:
        """`[candidates]` float32."""
        return (self.logits.float() / temperature).softmax(-1)

    def happened(self, layer: int, temperature: float) -> Tensor:
        """A scalar: the probability that the layer chosen is `layer` or an earlier one."""
        count = min(max(layer - self.first + 1, 0), len(self.logits))
        return self.probabilities(temperature)[:count].sum()

    @property
    def choice(self) -> int:
        """The most probable layer."""
        return self.first + int(self.logits.argmax())


class VisualGates(nn.Module):
    """The learnt start and exit, the temperature, and what the sparse middle kept.

    Attributes:
        progress: share of the training done, 0 to 1; see `AnnealGates`.
        asked: the questions of the next forwards, see `asking`. pending: those of them that wait for their example.
        kept: how many tokens (sum of gates) each question of the last training forward kept.
    """

    def __init__(self, settings: Alignment, num_layers: int) -> None:
        super().__init__()
        self.settings, self.num_layers = settings, num_layers
        self.start = self.exit = None
        if settings.inject_layer == "learnt":
            last = settings.filter_layer if settings.filter_layer is not None else (settings.last() or num_layers) - 1
            self.start = DepthGate(*(settings.start_candidates or (0, last)))
        if settings.exit_layer == "learnt":
            first = max(settings.first(), settings.filter_layer or 0) + 1
            self.exit = DepthGate(*(settings.exit_candidates or (first, num_layers)))
        self.progress = 0.0
        self.kept: list[float] = []
        self.asked: Sequence[Asked] | None = None
        self.pending: Iterator[Asked] = iter(())

    @property
    def temperature(self) -> float:
        """Falls geometrically from `hottest` to `coldest`."""
        settings = self.settings
        return float(settings.hottest * (settings.coldest / settings.hottest) ** min(max(self.progress, 0.0), 1.0))

    @property
    def is_hard(self) -> bool:
        """Whether the sparse middle chooses without gates by now."""
        return not self.training or self.progress >= self.settings.anneal_share

    @property
    def needs_labels(self) -> bool:
        """Whether a training without labels would go wrong: tokens would be chosen by the answer's last row, or the
        cost of layers would be missing from the loss."""
        is_learnt = self.start is not None or self.exit is not None
        return self.settings.keep_tokens is not None or (is_learnt and self.settings.layer_cost > 0)

    @property
    def inject_layer(self) -> int:
        """The first layer with visual rows: fixed, or the choice so far."""
        return self.start.choice if self.start is not None else int(self.settings.inject_layer)

    @property
    def exit_layer(self) -> int | None:
        """The first layer without them again: fixed, or the choice so far."""
        if self.exit is not None:
            layer = max(self.exit.choice, self.inject_layer + 1)  # vision is in one layer at least
            return layer if layer < self.num_layers else None
        fixed = self.settings.exit_layer
        return None if fixed is None else int(fixed)

    def presence(self, layer: int) -> Tensor | None:
        """A scalar: the probability that `layer` has visual rows, or None where nothing is learnt."""
        if self.start is None and self.exit is None:
            return None
        probability = torch.ones((), device=next(self.parameters()).device)
        if self.start is not None:
            probability = probability * self.start.happened(layer, self.temperature)
        if self.exit is not None:
            probability = probability * (1 - self.exit.happened(layer, self.temperature))
        return probability

    def regularizer(self) -> Tensor:
        """The loss term of the learnt start and exit: `layer_cost` times the expected fraction of layers with visual
        rows; 0 where nothing is learnt. The model's own loss contains it already while it trains."""
        layers = [self.presence(layer) for layer in self._span()]
        known = [one for one in layers if one is not None]
        if not known:
            return torch.zeros(())
        return self.settings.layer_cost * torch.stack(known).sum() / self.num_layers

    def _span(self) -> range:
        first = 0 if self.start is not None else self.inject_layer
        return range(first, self.num_layers if self.exit is not None else (self.exit_layer or self.num_layers))

    def expect(self, questions: Sequence[Asked] | None) -> None:
        """Before a forward: its examples' questions, in order. Models from `align` do this by themselves."""
        self.pending, self.kept = iter(questions or ()), []

    @contextmanager
    def asking(self, questions: Sequence[Asked] | None) -> Iterator[None]:
        """Says, for the forwards within, which rows choose tokens and for whom."""
        before, self.asked = self.asked, questions
        try:
            yield
        finally:
            self.asked = before
