"""Arrays with names on their axes and a unit, and what results look like in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from visipruner.contract.pruner import Pruner

Array = npt.NDArray[Any]


def plain(value: Any, digits: int = 6) -> Any:
    """JSON values: arrays as lists, rounded; numbers that are not there (NaN) as null; pruners as their settings."""
    if isinstance(value, Told):
        return value.to_dict()
    if isinstance(value, Pruner):
        return value.settings()
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        rounded = np.round(value.astype(float), digits).astype(object)
        rounded[np.isnan(value)] = None
        return rounded.tolist()
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and np.isnan(value) else value


class Told:
    """A dataclass that can be written as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, one a field."""
        return {part.name: plain(getattr(self, part.name)) for part in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Labelled(Told):
    """An array that says what it holds.

    Attributes:
        values: the numbers. dims: a name for each axis. coords: labels along an axis, where they are not 0, 1, 2, ...
        unit: "nats", "share", "layers", "tokens", "true or false", ...
    """

    values: Array
    dims: tuple[str, ...]
    unit: str
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values.ndim != len(self.dims):
            raise ValueError(f"{self.values.ndim} axes but {len(self.dims)} names {self.dims}")
        sizes = dict(zip(self.dims, self.values.shape, strict=True))
        for name, labels in self.coords.items():
            if len(labels) != sizes[name]:
                raise ValueError(f"axis {name} has {sizes[name]} places, not {len(labels)}")

    def labels(self, dim: str) -> list[Any]:
        """The labels along one axis."""
        return list(self.coords.get(dim, range(self.values.shape[self.dims.index(dim)])))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Labelled:
        """What `to_dict` gave, also after JSON."""
        values = np.array(data["values"], dtype=object)
        kind = float if any(value is None for value in values.flat) else None
        return cls(np.array(data["values"], dtype=kind), tuple(data["dims"]), data["unit"], data["coords"])
