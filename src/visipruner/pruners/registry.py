"""Methods by name. A method's module is imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import json
import os
from pathlib import Path
from typing import Any

from visipruner.errors import ConfigError
from visipruner.pruners.base import FILE_NAME, FORMAT_VERSION, Pruner

# name -> (module below visipruner.pruners, class, what it is)
_METHODS: dict[str, tuple[str, str, str]] = {
    "none": ("none", "NoPruning", "the plain model, recorded"),
    "visipruner": ("visipruner", "VisiPruner", "VisiPruner: three stages, influence on the last row (EMNLP 2025)"),
    "visipruner-reference": (
        "visipruner",
        "ReferenceVisiPruner",
        "what the VisiPruner authors' code computes, for comparison; slower than the dense model by design",
    ),
    "schedule": ("schedule", "FixedSchedule", "a fixed number of tokens from fixed layers on, content-blind"),
}


def available() -> dict[str, str]:
    """`{name: description}` of every method."""
    return {name: description for name, (_, _, description) in _METHODS.items()}


def method_class(name: str) -> type[Pruner]:
    """The class behind a name. Raises ConfigError with the nearest name."""
    if name not in _METHODS:
        close = difflib.get_close_matches(name, _METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(_METHODS))}."
        raise ConfigError(f"There is no method {name!r}; {hint}")
    module, cls, _ = _METHODS[name]
    return getattr(importlib.import_module(f"visipruner.pruners.{module}"), cls)  # type: ignore[no-any-return]


def make(name: str, **settings: Any) -> Pruner:
    """A method by name with settings as JSON values. Raises ConfigError for names and settings that do not exist."""
    cls = method_class(name)
    try:
        return cls.from_settings(settings)
    except TypeError as error:
        raise ConfigError(
            f"{name}: {str(error).removeprefix(cls.__name__ + '.__init__() ')}; `visipruner list` shows its settings."
        ) from error


def make_from_spec(spec: str) -> Pruner:
    """A method written as `name` or `name:key=value,key=value`, for instance `visipruner:keep_tokens=16`.

    Values are JSON or plain words. Raises ConfigError.
    """
    name, _, rest = spec.partition(":")
    settings = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{spec!r}: settings are written key=value, separated by commas, and not {pair!r}.")
        try:
            settings[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[key.strip()] = value.strip()
    return make(name.strip(), **settings)


def load_pruner(path: str | os.PathLike[str]) -> Pruner:
    """Reads a `pruner.json`, given the file or its directory. Raises ConfigError when it is not one."""
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    try:
        content = json.loads(file.read_text())
        version, method, settings = content["format_version"], content["method"], dict(content["settings"])
    except OSError as error:
        raise ConfigError(f"No pruner can be read from {file}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is not a pruner.json; write one with pruner.save_pretrained(directory).") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(f"{file} has format version {version}, newer than {FORMAT_VERSION}; update visipruner.")
    return method_class(method).from_settings(settings, drop_unknown=True)
