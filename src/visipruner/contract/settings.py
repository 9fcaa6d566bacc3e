"""A method's settings: their declared types and bounds, and layer numbers that fit another depth."""

from __future__ import annotations

import difflib
import math
from dataclasses import MISSING, dataclass, fields
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from visipruner.errors import ConfigError

LARGEST = 2**31 - 1  # of counts: nothing here has as many, and arithmetic on them stays within tensors' integers


@dataclass(frozen=True)
class Within:
    """Where a number must lie, both ends included. `what`: words for the error about what it is."""

    low: float = -math.inf
    high: float = math.inf
    what: str = ""

    def complaint(self, value: Any, number: float) -> str:
        """The rest of a sentence about the setting `value`, in which `number` lies outside."""
        if self.low > -math.inf and self.high < LARGEST:
            return f"{self.what}must lie in [{self.low}, {self.high}], got {value}."
        if number > self.high:
            return f"{self.what}can be {self.high} at most, got {value}."
        if self.low == 0:
            return f"{self.what}cannot be negative, got {value}."
        return f"{self.what}must be at least {self.low}, got {value}."


class OfDepth:
    """Marks the number of a layer of the text decoder: it must exist, and moves with the depth (`scaled_layer`)."""


Fraction = Annotated[float, Within(0, 1, "is a fraction and ")]
Count = Annotated[int, Within(0, LARGEST)]
Number = Annotated[int, Within(1, LARGEST)]  # at least one
Layer = Annotated[int, Within(0, LARGEST), OfDepth()]

PUBLISHED_DEPTH = 32  # layers of LLaVA-1.5-7B's decoder, for which most methods' layers were chosen
_NO_VALUE = object()


class _OutsideError(Exception):
    """A number lies outside its bounds."""

    def __init__(self, bounds: Within, number: float) -> None:
        self.bounds, self.number = bounds, number


# ---- types and bounds -----------------------------------------------------------------------------------------------


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
        try:
            result[key] = _fit(hints[key], value)
        except _OutsideError as error:
            raise ConfigError(f"{method}: {key} {error.bounds.complaint(value, error.number)}") from None
        if result[key] is _NO_VALUE:
            raise ConfigError(f"{method}: {key} takes {describe(hints[key])}, not {value!r}.")
    return result


def check_names(cls: type[Any], values: object) -> None:
    """Raises ConfigError unless `values` can be settings of `cls` at all: a dict by names."""
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{getattr(cls, 'name', cls.__name__)}: settings are a dict by names, not {values!r}.")


def _hints(cls: type[Any]) -> dict[str, Any]:
    """The declared types of a dataclass's fields."""
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: hints[item.name] for item in fields(cls)}


def _fit(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it, or `_NO_VALUE`. Raises _OutsideError."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(_fit(args[0], value), [note for note in args[1:] if isinstance(note, Within)])
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


def _bounded(value: Any, bounds: list[Within]) -> Any:
    for one in bounds:
        if value is not _NO_VALUE and not one.low <= value <= one.high:
            raise _OutsideError(one, value)
    return value


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
    if origin is Annotated:
        return describe(args[0])
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


# ---- layers ---------------------------------------------------------------------------------------------------------


def scaled_layer(layer: int, num_layers: int) -> int:
    """A layer chosen for 32 layers, at the same depth of `num_layers`; at least 1 unless it was 0."""
    return max(min(layer, 1), round(layer * num_layers / PUBLISHED_DEPTH))


def scaled_layers(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Ascending layers chosen for 32, at the same depths of `num_layers`; those that would coincide move up."""
    result: list[int] = []
    for layer in layers:
        result.append(max(scaled_layer(layer, num_layers), result[-1] + 1 if result else 0))
    return tuple(result)


def scaled_defaults(cls: type[Any], num_layers: int) -> dict[str, Any]:
    """The defaults of the settings that are layers (`Layer`, `tuple[Layer, ...]`), for `num_layers`."""
    defaults = {item.name: item.default for item in fields(cls) if item.name in _layer_names(cls)}
    return {
        name: scaled_layers(default, num_layers) if isinstance(default, tuple) else scaled_layer(default, num_layers)
        for name, default in defaults.items()
        if isinstance(default, tuple | int)
    }


def check_layers(settings: Any, num_layers: int) -> None:
    """Raises ConfigError where a setting that is a layer, or several, names one that the model does not have."""
    for name in _layer_names(type(settings)):
        value = getattr(settings, name)
        for layer in value if isinstance(value, tuple) else (value,):
            if layer is not None and not layer < num_layers:
                raise ConfigError(f"{name} {layer} does not exist: the model's layers are 0 to {num_layers - 1}.")


def _layer_names(cls: type[Any]) -> list[str]:
    return [name for name, hint in _hints(cls).items() if _is_layer(hint)]


def _is_layer(hint: Any) -> bool:
    args = get_args(hint)
    if get_origin(hint) is Annotated:
        return any(isinstance(note, OfDepth) for note in args[1:])
    return any(_is_layer(arg) for arg in args)
