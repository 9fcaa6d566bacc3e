"""Model shapes without weights: the configs that `--shape` knows by name, and any transformers config.json."""

from __future__ import annotations

import difflib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from visipruner.errors import ConfigError


def names() -> list[str]:
    """Shapes that ship. Their numbers are those of the published checkpoints' configs; "tiny" is for trying out."""
    folder = files("visipruner.speed") / "shapes"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_config(shape: str, layers: int | None = None) -> Any:
    """The transformers config behind a name or a config.json, its decoder cut to `layers` layers.

    Raises ConfigError for a name that is unknown, and for a file that is no config of a model that reads images.
    """
    from transformers import AutoConfig

    content = _content(shape)
    if not isinstance(content, dict) or not content.get("model_type") or not content.get("vision_config"):
        raise ConfigError(f"{shape} is no config of a model that reads images: it needs model_type and vision_config.")
    if layers is not None:
        content = {**content, "text_config": _shortened(shape, content.get("text_config"), layers)}
    try:
        return AutoConfig.for_model(**content)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{shape} is no config that transformers knows ({error}).") from error


def _shortened(shape: str, text: Any, layers: int) -> dict[str, Any]:
    depth = text.get("num_hidden_layers") if isinstance(text, dict) else None
    if depth is None or layers > depth:
        raise ConfigError(f"{shape} has {depth or 'an unsaid number of'} layers; --layers can only take some away.")
    shorter: dict[str, Any] = {**text, "num_hidden_layers": layers}
    if "layer_types" in shorter:
        shorter["layer_types"] = shorter["layer_types"][:layers]
    return shorter


def _content(shape: str) -> Any:
    path = Path(shape).expanduser()
    if path.suffix == ".json" or path.is_dir():
        path = path / "config.json" if path.is_dir() else path
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"No config can be read from {path} ({error}).") from error
    if shape not in names():
        close = difflib.get_close_matches(shape, names(), n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names())}, or a config.json."
        raise ConfigError(f"There is no shape {shape!r}; {hint}")
    return json.loads((files("visipruner.speed") / "shapes" / f"{shape}.json").read_text(encoding="utf-8"))
