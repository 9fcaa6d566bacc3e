"""The two ways to say how many tokens stay, and pruners that drop once: by a score, or on entry to a layer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from visipruner.contract.dropping import DroppingPruner
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import PromptRun
from visipruner.contract.scope import Scope, best, chosen, parts_of
from visipruner.errors import ConfigError

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
class Budgeted(DroppingPruner):
    """Keeps a number of tokens.

    Attributes:
        keep_tokens: how many visual tokens stay (all, if there are fewer); None to go by `keep_ratio`.
        keep_ratio: the fraction that stays.
        scope: "prompt" counts the tokens of all images together, and an image may lose more than its neighbour;
            "image" is a budget for each, which is then chosen from as if it were alone. Images are those of the trace:
            crops that are grids of their own and video frames, too.
    """

    keep_tokens: int | None = None
    keep_ratio: float = 0.5
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
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
        parts = parts_of(view, self._config.scope)
        counts = [self._config.budget(len(part)) for part in parts]
        if sum(counts) == view.visual.numel():
            return None
        return best(self._config.score(view), parts, counts)


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
        parts = parts_of(view, self._config.scope)
        return chosen(view, parts, [self._config.budget(len(part)) for part in parts], self._config.choose)


def check_layers(num_layers: int, *layers: int) -> None:
    """Raises ConfigError where one of `layers` is none of a model's."""
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(f"layer {layer} does not exist: the model's layers are 0 to {num_layers - 1}.")
