"""A fixed schedule: given numbers of tokens from given layers on. For measuring speed, and for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from visipruner.contract.budget import check_stages
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, DroppingPruner, InStates
from visipruner.contract.settings import Count, Layer
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

    in_states: ClassVar[InStates] = "ask"

    layers: tuple[Layer, ...]
    keep: tuple[Count, ...]
    pattern: Literal["uniform", "first"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self.layers, self.keep, "keep")
        if list(self.keep) != sorted(self.keep, reverse=True):
            raise ConfigError(f"keep must be counts that never grow, got {self.keep}.")

    def check(self, num_layers: int) -> None:
        if self.layers and self.layers[-1] >= num_layers:
            raise ConfigError(f"layers ends at {self.layers[-1]} but the model's last layer is {num_layers - 1}.")

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        """An example: all tokens leave after half the layers."""
        return cls(layers=(num_layers // 2,), keep=(0,))

    def observes(self, layer: int) -> bool:
        return layer in self.layers

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        present, count = view.visual.numel(), self.keep[self.layers.index(layer)]
        if count >= present:
            return None
        places = torch.arange(count, device=view.visual.device)
        return places if self.pattern == "first" else places * present // max(count, 1)
