"""VisiPruner on a fixed schedule that still does all the work of finding one: for models whose weights are random."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import PromptRun
from visipruner.errors import ConfigError
from visipruner.pruners.visipruner import VisiPruner, VisiPrunerRun


@dataclass(frozen=True)
class Schedule:
    """Filter layer, tokens kept from there on, first layer without a visual token."""

    filter: int
    keep: int
    exit: int

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """`filter=14,keep=10,exit=20`. Raises ConfigError."""
        try:
            values = {key.strip(): int(value) for key, value in (part.split("=") for part in text.split(","))}
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--schedule is written filter=14,keep=10,exit=20, and not {text!r}.") from error

    @classmethod
    def for_depth(cls, num_layers: int) -> Schedule:
        """Layers 14 and 20 of 32 and ten tokens, about the paper's mean for LLaVA-1.5-7B, at the same depth."""
        middle = max(1, round(14 * num_layers / 32))
        return cls(middle, 10, min(num_layers - 1, max(middle + 1, round(20 * num_layers / 32))))

    def applied(self, pruner: VisiPruner, num_layers: int) -> Scheduled:
        """`pruner` on this schedule, whose budget takes the place of its own. Raises ConfigError where it does not fit
        the model."""
        settings = {name: getattr(pruner, name) for name in (item.name for item in fields(VisiPruner))}
        fixed = {"filter_layer": self.filter, "exit_layer": self.exit, "keep_tokens": self.keep, "keep_ratio": None}
        scheduled = Scheduled(**{**settings, **fixed})
        scheduled.check(num_layers)
        if self.filter <= pruner.shallow_end:
            raise ConfigError(f"Filter layer {self.filter} must come after layer {pruner.shallow_end} (shallow_end).")
        return scheduled


@dataclass(frozen=True, kw_only=True)
class Scheduled(VisiPruner):
    """Looks at every layer that detection would look at, then does as the schedule says."""

    def start(self) -> PromptRun:
        return _ScheduledRun(self)


class _ScheduledRun(VisiPrunerRun):
    def observes(self, layer: int) -> bool:
        config = self._config
        if "middle" not in config.stages or self._has_left:
            return False
        return layer > config.shallow_end if self.trigger_layer is None else "deep" in config.stages

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        config = self._config
        bool((view.influence.cosine < config.filter_threshold).any())  # the evidence, whatever it says
        return super().select(layer, view) if layer == config.filter_layer else None
