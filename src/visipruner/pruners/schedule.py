"""A fixed schedule: given numbers of tokens from given layers on. For measuring speed, and for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from visipruner.contract.about import About
from visipruner.contract.dropping import DroppingPruner
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import PromptRun
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FixedSchedule(DroppingPruner):
    """Keeps `keep[i]` visual tokens from layer `layers[i] + 1` on, chosen without regard to the image's content.

    Attributes:
        layers: ascending layers after which tokens leave. keep: how many stay after each; not increasing.
        pattern: "uniform" strides evenly over the tokens still present, "first" takes the first ones.
    """

    name: ClassVar[str] = "schedule"
    about: ClassVar[About] = About(
        "a fixed number of tokens from fixed layers on, content-blind", acts="after any layers"
    )

    layers: tuple[int, ...]
    keep: tuple[int, ...]
    pattern: Literal["uniform", "first"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.layers) != len(self.keep):
            raise ConfigError("layers and keep must have the same length: one count per layer.")
        if list(self.layers) != sorted(set(self.layers)) or any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers must be ascending layer numbers, got {self.layers}.")
        if any(count < 0 for count in self.keep) or list(self.keep) != sorted(self.keep, reverse=True):
            raise ConfigError(f"keep must be counts that never grow, got {self.keep}.")

    def check(self, num_layers: int) -> None:
        if self.layers and self.layers[-1] >= num_layers:
            raise ConfigError(f"layers ends at {self.layers[-1]} but the model's last layer is {num_layers - 1}.")

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """An example: all tokens leave after half the layers."""
        return cls(layers=(num_layers // 2,), keep=(0,))

    def start(self) -> PromptRun:
        return _ScheduleRun(self)


class _ScheduleRun(PromptRun):
    def __init__(self, config: FixedSchedule) -> None:
        super().__init__()
        self._keep = dict(zip(config.layers, config.keep, strict=True))
        self._pattern = config.pattern

    def observes(self, layer: int) -> bool:
        return layer in self._keep

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        present, count = view.visual.numel(), self._keep[layer]
        if count >= present:
            return None
        places = torch.arange(count, device=view.visual.device)
        return places if self._pattern == "first" else places * present // max(count, 1)
