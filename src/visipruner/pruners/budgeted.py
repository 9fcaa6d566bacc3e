"""The two ways to say how many tokens stay, and pruners that drop once: by a score, or on entry to a layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from visipruner.engine.entry import EntryView, Merge
from visipruner.engine.view import LayerView
from visipruner.errors import ConfigError
from visipruner.pruners.base import PromptRun, Pruner
from visipruner.pruners.selection import top

PUBLISHED_DEPTH = 32  # layers of LLaVA-1.5-7B's decoder, for which most methods' layers were chosen


def scaled_layer(layer: int, num_layers: int) -> int:
    """A layer chosen for 32 layers, at the same depth of `num_layers`; at least 1 unless it was 0."""
    return max(min(layer, 1), round(layer * num_layers / PUBLISHED_DEPTH))


def scaled_layers(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Ascending layers chosen for 32, at the same depths of `num_layers`; those that would coincide move up."""
    result: list[int] = []
    for layer in layers:
        result.append(max(scaled_layer(layer, num_layers), result[-1] + 1 if result else 0))
    return tuple(result)


@dataclass(frozen=True, kw_only=True)
class Budgeted(Pruner):
    """Keeps a number of tokens.

    Attributes:
        keep_tokens: how many visual tokens of a prompt stay (all, if there are fewer); None to go by `keep_ratio`.
        keep_ratio: the fraction that stays.
    """

    keep_tokens: int | None = None
    keep_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.keep_tokens is not None and self.keep_tokens < 0:
            raise ConfigError(f"keep_tokens cannot be negative, got {self.keep_tokens}.")
        if not 0 <= self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio is a fraction and must lie in [0, 1], got {self.keep_ratio}.")

    def budget(self, present: int) -> int:
        """How many of `present` tokens stay."""
        return round(self.keep_ratio * present) if self.keep_tokens is None else min(self.keep_tokens, present)


@dataclass(frozen=True, kw_only=True)
class ScoredPruner(Budgeted):
    """Scores the tokens in one layer's attention and keeps the best. A method is its `score`.

    Attributes:
        layer: the first layer without the dropped tokens; they are judged in the layer before it.
    """

    layer: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ConfigError(f"layer must be at least 1: {self.name} judges in the layer before it, got {self.layer}.")

    def check(self, num_layers: int) -> None:
        check_layers(num_layers, self.layer)

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        return cls(layer=scaled_layer(cls.layer, num_layers))

    @abstractmethod
    def score(self, view: LayerView) -> Tensor:
        """`[n_v]`: what each visual token present is worth."""

    def start(self) -> PromptRun:
        return _ScoredRun(self)


class _ScoredRun(PromptRun):
    def __init__(self, config: ScoredPruner) -> None:
        super().__init__()
        self._config = config

    def observes(self, layer: int) -> bool:
        return layer == self._config.layer - 1

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        present = view.visual.numel()
        count = self._config.budget(present)
        return None if count == present else top(self._config.score(view), count)


@dataclass(frozen=True, kw_only=True)
class EntryPruner(Budgeted):
    """Chooses among the tokens that enter one layer, by default the first: before the language model.

    Attributes:
        layer: the first layer without the dropped tokens.
    """

    layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 0:
            raise ConfigError(f"layer cannot be negative, got {self.layer}.")

    def check(self, num_layers: int) -> None:
        check_layers(num_layers, self.layer)

    @abstractmethod
    def choose(self, view: EntryView, count: int) -> Tensor | Merge:
        """Ascending positions `[count]` among the visual tokens present, or a `Merge` of as many."""

    def start(self) -> PromptRun:
        return _EntryRun(self)


class _EntryRun(PromptRun):
    def __init__(self, config: EntryPruner) -> None:
        super().__init__()
        self._config = config

    def observes_entry(self, layer: int) -> bool:
        return layer == self._config.layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        present = view.tokens.numel()
        count = self._config.budget(present)
        return None if count == present else self._config.choose(view, count)


def check_layers(num_layers: int, *layers: int) -> None:
    """Raises ConfigError where one of `layers` is none of a model's."""
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(f"layer {layer} does not exist: the model's layers are 0 to {num_layers - 1}.")
