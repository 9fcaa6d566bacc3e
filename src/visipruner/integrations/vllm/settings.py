"""What a user asks for under "visipruner" in vLLM's `additional_config`, and which methods can be served.

Nothing here knows vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visipruner.contract.picture import picture_methods
from visipruner.contract.pruner import FORMAT_VERSION, Pruner
from visipruner.errors import ConfigError
from visipruner.pruners.registry import load_pruner, make, make_from_spec, method_class
from visipruner.words import spans

KEY = "visipruner"
_KNOWN = {"method", "settings", "config", "allow_untested", "cache_groups", "format_version"}


@dataclass(frozen=True)
class Served:
    """The method that a server runs.

    Attributes:
        allow_untested: whether versions and decoders that were never tried may run.
        cache_groups: first layers of cache groups after the first; blocks that a group no longer needs go back.
    """

    pruner: Pruner
    allow_untested: bool = False
    cache_groups: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values, for another process; `served` reads them again."""
        return {
            "method": self.pruner.name,
            "settings": self.pruner.settings(),
            "allow_untested": self.allow_untested,
            "cache_groups": list(self.cache_groups),
        }


def served(asked: Any, num_layers: int, in_line: bool = True) -> Served:
    """The method that `asked` means, for a decoder of `num_layers` layers; `in_line`: as for `Pruner.begin`.

    `asked` is a method with its settings (`{"method": "fastv", "settings": {"layer": 2}}`; without settings the
    published ones, at the same relative depth), a saved file (`{"config": "pruner.json"}`), such a file's content, a
    `Pruner`, or a string as `--method` takes it (`"fastv:layer=2"`). Raises ConfigError.
    """
    if isinstance(asked, Pruner):
        found = Served(asked)
    elif isinstance(asked, str):
        found = Served(_named(asked, num_layers))
    elif isinstance(asked, Mapping):
        found = _from_mapping(asked, num_layers)
    else:
        raise ConfigError(f'"{KEY}" in additional_config holds {{"method": ..., "settings": ...}}, and not {asked!r}.')
    found.pruner.check(num_layers)
    refuse(found.pruner, num_layers, in_line)
    return found


def _from_mapping(asked: Mapping[str, Any], num_layers: int) -> Served:
    unknown = sorted(set(asked) - _KNOWN)
    if unknown or ("config" in asked) == ("method" in asked):
        odd = f"{', '.join(unknown)} is not known" if unknown else "give one of the two"
        raise ConfigError(
            f'"{KEY}" takes "method" (with "settings") or "config", "cache_groups" and "allow_untested": {odd}.'
        )
    if asked.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise ConfigError(f"The pruner's format version is newer than {FORMAT_VERSION}; update visipruner.")
    if "config" in asked:
        pruner = load_pruner(Path(asked["config"]))
    elif asked.get("settings"):
        pruner = make(asked["method"], **asked["settings"])
    else:
        pruner = _named(asked["method"], num_layers)
    groups = tuple(asked.get("cache_groups", ()))
    if list(groups) != sorted(set(groups) & set(range(1, num_layers))) or len(groups) > 7:
        raise ConfigError(
            f"cache_groups are at most 7 ascending layers, each the first of a group, from 1 to {num_layers - 1}, "
            f"and not {list(groups)}."
        )
    return Served(pruner, bool(asked.get("allow_untested", False)), groups)


def _named(spec: str, num_layers: int) -> Pruner:
    return make_from_spec(spec) if ":" in spec or "+" in spec else method_class(spec).for_depth(num_layers)


def refuse(pruner: Pruner, num_layers: int, in_line: bool = True) -> None:
    """Raises ConfigError, in one sentence, for a method that needs what vLLM's attention cannot do."""
    if picture_methods(pruner):
        raise ConfigError(f"{pruner.name} makes pictures smaller before the model sees them, which vLLM does not do.")
    routed = [layer for layer in range(num_layers) if not pruner.routing(layer).is_plain]
    if pruner.first_layer() or routed:
        layers = spans(routed or range(pruner.first_layer()), ", ")
        raise ConfigError(
            f"{pruner.name} changes in layers {layers} which rows attend to which, and vLLM's kernels cannot; leave "
            "that part out (for visipruner: stages=['middle', 'deep']), or choose another method."
        )
    if pruner.vision_layers(num_layers):
        raise ConfigError(
            f"{pruner.name} looks into the vision tower, which vLLM does not show; choose another method."
        )
    if pruner.reads_rotary:
        raise ConfigError(f"{pruner.name} reads rotary embeddings, which vLLM does not show; choose another method.")
    if pruner.recalls:
        raise ConfigError("No token comes back in vLLM, whose cache has no place for one; leave recall out.")
    if pruner.reads_states:
        raise ConfigError(f"{pruner.name} reads the states of layers, which vLLM does not show; choose another method.")
    if pruner.begin(lambda: in_line).may_close_gaps:
        raise ConfigError(
            f"{pruner.name} numbers the rows that stay anew, and vLLM has one numbering for all layers; add "
            "positions='keep' to its settings."
        )
