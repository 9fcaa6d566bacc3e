"""Repeats what was decided for a prompt, without looking again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visipruner.engine.view import LayerView
from visipruner.pruners.base import PromptRun


class ReplayRun(PromptRun):
    """Follows a recorded `kept` list (`ExampleTrace.kept`) of one example."""

    def __init__(self, kept: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._kept = kept

    def observes(self, layer: int) -> bool:
        return len(self._kept[layer + 1]) < len(self._kept[layer])

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        place = {token: position for position, token in enumerate(self._kept[layer])}
        positions = [place[token] for token in self._kept[layer + 1]]
        return torch.tensor(positions, dtype=torch.long, device=view.visual.device)
