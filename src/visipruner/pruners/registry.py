"""Methods by name: those of this folder's files, and those that installed packages bring.

Where a file has its method's name, it alone is imported. A package brings methods by entry points of the group
`visipruner.pruners`, `name = "its.module:ItsClass"`; a name that is here already stays ours.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import pkgutil
import re
import warnings
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import visipruner.pruners
from visipruner.contract.pruner import FILE_NAME, FORMAT_VERSION, Pruner
from visipruner.contract.settings import declared
from visipruner.errors import ConfigError

GROUP = "visipruner.pruners"


def available() -> dict[str, str]:
    """`{name: summary}` of every method, in alphabetical order."""
    return {name: cls.about.summary for name, cls in sorted(_all_classes().items())}


def method_class(name: str) -> type[Pruner]:
    """The class behind a name. Raises ConfigError with the nearest name."""
    if not isinstance(name, str):
        raise ConfigError(f"A method is given by its name, not by {name!r}.")
    classes = _classes_in(name.replace("-", "_")) if name.isascii() else {}
    if name not in classes:
        classes = _all_classes()
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(sorted(classes))}."
        raise ConfigError(f"There is no method {name!r}; {hint}")
    return classes[name]


def _all_classes() -> dict[str, type[Pruner]]:
    """Every file of this folder is looked through; a new method needs no entry in a list."""
    found = _brought_along()
    for module in _modules():
        found.update(_classes_in(module))
    return found


def _brought_along() -> dict[str, type[Pruner]]:
    """`{name: class}` of installed packages. One that cannot be loaded is left out with a warning."""
    found: dict[str, type[Pruner]] = {}
    for point in entry_points(group=GROUP):
        try:
            cls = point.load()
            if not issubclass(cls, Pruner) or cls.name != point.name:
                raise TypeError(f"it is no Pruner whose name is {point.name!r}")
        except Exception as error:  # whatever another package's code raises
            warnings.warn(f"The method {point.name!r} ({point.value}) cannot be used: {error}", stacklevel=2)
        else:
            found[point.name] = cls
    return found


@cache
def _modules() -> frozenset[str]:
    found = pkgutil.iter_modules(visipruner.pruners.__path__)
    return frozenset(module.name for module in found if not module.name.startswith("_"))


def _classes_in(module: str) -> dict[str, type[Pruner]]:
    """`{name: class}` of the methods that a file of this folder defines."""
    if module not in _modules():
        return {}
    members = vars(importlib.import_module(f"visipruner.pruners.{module}")).values()
    here = f"visipruner.pruners.{module}"
    classes = [value for value in members if isinstance(value, type) and issubclass(value, Pruner)]
    public = [cls for cls in classes if cls.__module__ == here and not cls.__name__.startswith("_")]
    return {cls.name: cls for cls in public if "name" in vars(cls)}


def make(name: str, /, **settings: Any) -> Pruner:
    """A method by name with settings as JSON values. Raises ConfigError for names and settings that do not exist."""
    return method_class(name).from_settings(settings)


def make_from_spec(spec: str) -> Pruner:
    """A method written as `name` or `name:key=value,key=value`, for instance `visipruner:keep_tokens=16`; several on
    one prompt with a plus between them, `divprune:keep_tokens=192+visipruner`.

    Values are JSON or plain words. Raises ConfigError.
    """
    parts = [_make_one(part) for part in re.split(r"\+(?=\s*[a-z])", spec)]
    return parts[0] if len(parts) == 1 else method_class("composed")(parts=tuple(parts))  # type: ignore[call-arg]


def _make_one(spec: str) -> Pruner:
    name, _, rest = spec.partition(":")
    settings = {}
    for pair in filter(None, re.split(r",(?![^\[]*\])", rest)):  # commas inside a list do not end a setting
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{spec!r}: settings are written key=value, separated by commas, and not {pair!r}.")
        try:
            settings[key.strip()] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            settings[key.strip()] = value.strip()
    return make(name.strip(), **settings)


def spec_of(pruner: Pruner) -> str:
    """What `make_from_spec` makes this very method of: its name, and the settings that are not as published."""
    if "parts" in pruner.settings():
        return "+".join(spec_of(part) for part in pruner.parts)  # type: ignore[attr-defined]
    published = declared(type(pruner))
    given = {
        key: value
        for key, value in pruner.settings().items()
        if json.dumps(published[key].get("default")) != json.dumps(value)
    }
    return f"{pruner.name}:" + ",".join(f"{key}={json.dumps(value)}" for key, value in given.items())


def load_pruner(path: str | os.PathLike[str]) -> Pruner:
    """Reads a `pruner.json`, given the file or its directory. Raises ConfigError when it is not one."""
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    try:
        content = json.loads(file.read_text())
        version, method, settings = content["format_version"], content["method"], dict(content["settings"])
    except OSError as error:
        raise ConfigError(f"No pruner can be read from {file}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file} is not a pruner.json; write one with pruner.save_pretrained(directory).") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(f"{file} has format version {version}, newer than {FORMAT_VERSION}; update visipruner.")
    return method_class(method).from_settings(settings, drop_unknown=True)
