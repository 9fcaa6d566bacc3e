"""Where a model's visual rows exist and how many: the settings that are saved in its config."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from visipruner.errors import ConfigError

Learnt = Literal["learnt"]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The paper's guidelines (section 6) as numbers. Layers count from 0. Raises ConfigError where they contradict.

    Attributes:
        inject_layer: the first layer with visual rows, which enter straight from the projector; or "learnt".
        exit_layer: the first layer without visual rows again, as everywhere in this library; None for never; or
            "learnt".
        keep_tokens: how many visual tokens go on after `filter_layer`, None for all.
        filter_layer: the layer whose attention says which; needed with `keep_tokens`.
        frozen_layers: layers in between in which visual rows pause: they only give keys and values, as they are.
            Not the paper's; for layers that need to see the image, but need not work on it. They come before
            `filter_layer`.
        start_candidates, exit_candidates: `(first, last)` layers that a learnt choice considers, both included.
        layer_cost: weight in the loss of the fraction of layers that run visual rows; what a learnt choice is paid.
        hottest, coldest: temperatures of all soft choices at the beginning and the end of the annealing.
        anneal_share: the share of training after which `keep_tokens` are a hard choice.
    """

    inject_layer: int | Learnt = 0
    exit_layer: int | Learnt | None = None
    keep_tokens: int | None = None
    filter_layer: int | None = None
    frozen_layers: tuple[int, ...] = ()
    start_candidates: tuple[int, int] | None = None
    exit_candidates: tuple[int, int] | None = None
    layer_cost: float = 0.1
    hottest: float = 1.0
    coldest: float = 0.05
    anneal_share: float = 0.8

    def __post_init__(self) -> None:
        for name in ("start_candidates", "exit_candidates"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else tuple(given))
        object.__setattr__(self, "frozen_layers", tuple(sorted(set(self.frozen_layers))))
        for name, least in (("inject_layer", 0), ("exit_layer", 1), ("keep_tokens", 1), ("filter_layer", 0)):
            value = getattr(self, name)
            learnable = name in ("inject_layer", "exit_layer")
            if isinstance(value, str) and not (learnable and value == "learnt"):
                raise ConfigError(f"{name} must be a number{' or learnt' if learnable else ''}, got {value!r}.")
            if isinstance(value, int) and value < least:
                raise ConfigError(f"{name} must be at least {least}, got {value}.")
        if (self.keep_tokens is None) != (self.filter_layer is None):
            raise ConfigError("keep_tokens and filter_layer go together: give both or none.")
        if not 0 < self.coldest <= self.hottest or not 0 <= self.anneal_share <= 1 or self.layer_cost < 0:
            raise ConfigError("Needed: 0 < coldest <= hottest, 0 <= anneal_share <= 1 and layer_cost >= 0.")
        self._check_order()
        self._check_frozen()

    def _check_order(self) -> None:
        start, end, chooser = self.first(), self.last(), self.filter_layer
        if end is not None and end <= start:
            raise ConfigError(f"exit_layer {end} must come after inject_layer {start}.")
        if chooser is not None and (chooser < start or (end is not None and chooser >= end)):
            raise ConfigError(f"filter_layer {chooser} must lie between inject_layer {start} and exit_layer {end}.")

    def _check_frozen(self) -> None:
        if not self.frozen_layers:
            return
        if "learnt" in (self.inject_layer, self.exit_layer):
            raise ConfigError("frozen_layers need fixed layers; give numbers for inject_layer and exit_layer.")
        first, last = self.frozen_layers[0], self.frozen_layers[-1]
        end = self.filter_layer if self.filter_layer is not None else self.last()
        if first < self.first() or (end is not None and last >= end):
            raise ConfigError(
                f"frozen_layers {first} to {last} must lie between inject_layer {self.first()} and "
                f"{'filter_layer' if self.filter_layer is not None else 'exit_layer'} {end}."
            )

    def first(self) -> int:
        """The latest layer that visual rows may enter at."""
        if self.inject_layer != "learnt":
            return self.inject_layer
        return 0 if self.start_candidates is None else self.start_candidates[1]

    def last(self) -> int | None:
        """The earliest layer at which they may be gone again."""
        if self.exit_layer != "learnt":
            return self.exit_layer
        return None if self.exit_candidates is None else self.exit_candidates[0]

    def check(self, num_layers: int) -> None:
        """Raises ConfigError where a model of `num_layers` layers has no such layer."""
        exits = self.exit_candidates[1] if self.exit_candidates else self.last()
        for name, layer, most in (
            ("inject_layer", self.first(), num_layers - 1),
            ("filter_layer", self.filter_layer, num_layers - 1),
            ("frozen_layers", max(self.frozen_layers, default=None), num_layers - 1),
            ("exit_layer", exits, num_layers),
        ):
            if layer is not None and layer > most:
                raise ConfigError(f"{name} {layer} is not in a model of {num_layers} layers; it can be {most} at most.")

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The reverse of `to_dict`. Raises ConfigError for unknown keys."""
        unknown = sorted(set(values) - {item.name for item in fields(cls)})
        if unknown:
            raise ConfigError(f"The alignment holds {unknown[0]!r}, unknown to this version; update visipruner.")
        return cls(**values)
