"""What a method's name means for a model: one rule for `run`, `eval`, `bench`, the plug-ins and Python.

A bare name is fitted to the model: it has the settings that were calibrated for that model, where it brings some, else
the published ones with their layers at the same depth. `name:key=value,...` is the published settings as they are, with
these changes, whatever the model; `name:` is them without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.models import packaged
from visipruner.pruners.registry import load_pruner, make_from_spec, method_class

DEFAULT = "visipruner"
ANY_DEPTH = 32  # for a first look at a spec, before the model is here
_BUDGETS = {"keep_tokens": "keep_ratio", "keep_ratio": "keep_tokens"}


@dataclass(frozen=True)
class Chosen:
    """A method ready for one model. Attributes: source: where its settings come from, in a few words."""

    pruner: Pruner
    source: str

    def describe(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"method": self.pruner.name, "settings": self.pruner.settings(), "source": self.source}


def is_bare(spec: str) -> bool:
    """Whether `spec` is a name alone."""
    return not set(spec) & set(":+")


def resolve(spec: str | Path | Pruner, model: str, num_layers: int) -> Chosen:
    """The method that `spec` means for the model called `model`, with so many decoder layers.

    A path is that of a saved pruner.json or its folder; a pruner is taken as it is. Raises ConfigError.
    """
    if isinstance(spec, Pruner):
        return Chosen(spec, "as given")
    if isinstance(spec, Path):
        return Chosen(load_pruner(spec), f"read from {spec}")
    if not spec.strip():
        raise ConfigError(f"The method's name is empty; leave it out for {DEFAULT!r}, or see: visipruner list")
    if not is_bare(spec):
        return Chosen(make_from_spec(spec), "published, with what is written")
    ours = packaged.calibrated(model)
    if ours is not None and ours.name == spec:
        return Chosen(ours, f"calibrated for {model}")
    return Chosen(method_class(spec).for_depth(num_layers), "published, layers at the same depth")


def adjusted(spec: str, settings: Mapping[str, Any], model: str, num_layers: int) -> Chosen:
    """`resolve` with some settings changed. Raises ConfigError, also where `spec` is more than a name."""
    if not settings:
        return resolve(spec, model, num_layers)
    if not is_bare(spec):
        raise ConfigError(
            f"Settings beside a method go with a bare name; write them into it: {spec.partition(':')[0]}:key=value."
        )
    base = resolve(spec, model, num_layers)
    merged = {**base.pruner.settings(), **settings}
    for key in settings:  # a budget takes the place of the other kind
        other = _BUDGETS.get(key)
        if other in merged and other not in settings:
            del merged[other]
    return Chosen(type(base.pruner).from_settings(merged), f"{base.source}; given: {', '.join(settings)}")
