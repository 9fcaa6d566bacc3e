"""A method's settings against their declared types."""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, fields
from numbers import Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from visipruner.errors import ConfigError

_NO_VALUE = object()


def checked(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """`values` as the dataclass `cls` declares them: whole floats for ints, lists (and a lone value) for tuples.

    Raises ConfigError, naming the setting and what it takes, for anything else. Unknown names too.
    """
    hints = _hints(cls)
    method = getattr(cls, "name", cls.__name__)
    result = {}
    for key, value in values.items():
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(hints) or 'none'}."
            raise ConfigError(f"{method} has no setting {key!r}; {hint}")
        result[key] = _fit(hints[key], value)
        if result[key] is _NO_VALUE:
            raise ConfigError(f"{method}: {key} takes {describe(hints[key])}, not {value!r}.")
    return result


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The declared types of a dataclass's fields."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in fields(cls)}


def _fit(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it, or `_NO_VALUE`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return next((fit for arg in args if (fit := _fit(arg, value)) is not _NO_VALUE), _NO_VALUE)
    if origin is Literal:
        return value if value in args and not isinstance(value, bool) else _NO_VALUE
    if origin is tuple:
        items = [_fit(args[0], item) for item in (value if isinstance(value, list | tuple) else [value])]
        return _NO_VALUE if any(item is _NO_VALUE for item in items) else tuple(items)
    if hint is NoneType:
        return None if value is None else _NO_VALUE
    if hint in {int, float}:
        return _fit_number(hint, value)
    kind = origin or hint  # of lists, functions and the like only what they are
    return value if hint is Any or (isinstance(kind, type) and isinstance(value, kind)) else _NO_VALUE


def _fit_number(hint: type[int] | type[float], value: Any) -> Any:
    # bool is an int to Python, but nobody means `keep_tokens=true`.
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are Real, too
        return _NO_VALUE
    if hint is int and value != value // 1:
        return _NO_VALUE
    return math.floor(value) if hint is int else float(value)


def describe(hint: Any) -> str:
    """A type as a person would say it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return " or ".join(describe(arg) for arg in args)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def declared(cls: type[Any]) -> dict[str, dict[str, Any]]:
    """`{setting: {"takes": words, "default": value}}`; no "default" where the setting must be given."""
    described: dict[str, dict[str, Any]] = {name: {"takes": describe(hint)} for name, hint in _hints(cls).items()}
    for item in fields(cls):
        if item.default is not MISSING:
            described[item.name]["default"] = item.default
    return described
