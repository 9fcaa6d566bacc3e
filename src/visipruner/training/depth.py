"""A learnt layer: a distribution over candidates, annealed to one of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
