"""No pruning: the control every table needs. The plain model, recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.engine.view import LayerView
from visipruner.pruners.base import PromptRun, Pruner


@dataclass(frozen=True, kw_only=True)
class NoPruning(Pruner):
    """Keeps every token in every layer; the output is the plain model's to the last bit."""

    name: ClassVar[str] = "none"

    def start(self) -> PromptRun:
        return _KeepAll()


class _KeepAll(PromptRun):
    def observes(self, layer: int) -> bool:
        return False

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        return None
