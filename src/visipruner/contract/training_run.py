"""What a method may do while it is trained, and no method does otherwise: soft choices in place of dropped tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visipruner.contract.pruner import PromptRun, Pruner


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPruner(Pruner):
    """A method whose runs may be `TrainingRun`s."""


class TrainingRun(PromptRun):
    """One prompt while the method learns."""

    def biases(self, layer: int) -> bool:
        """Whether `edge_bias` may have something to say about this layer."""
        return False

    def edge_bias(self, layer: int, rows: Tensor, visual: Tensor) -> Tensor | None:
        """What to add to this layer's attention logits: `[n, n]` float over the example's rows that run, or None.

        `rows`: `[n]` long, their places in the prompt; `visual`: `[n]` bool. Not asked while decoding.
        """
        return None

    def output_share(self, layer: int) -> Tensor | None:
        """Which share (0 to 1, a scalar) of this layer's update visual rows take over, or None for all of it."""
        return None
