"""Arrays with names on their axes and a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Labelled:
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
        for name, labels in self.coords.items():
            if len(labels) != self.values.shape[self.dims.index(name)]:
                raise ValueError(
                    f"axis {name} has {self.values.shape[self.dims.index(name)]} places, not {len(labels)}"
                )

    def labels(self, dim: str) -> list[Any]:
        """The labels along one axis."""
        return list(self.coords.get(dim, range(self.values.shape[self.dims.index(dim)])))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers that are not there (NaN) are null."""
        return {
            "dims": list(self.dims),
            "coords": {name: list(labels) for name, labels in self.coords.items()},
            "unit": self.unit,
            "values": _plain(self.values),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Labelled:
        values = np.array(data["values"], dtype=float if _has_null(data["values"]) else None)
        return cls(values, tuple(data["dims"]), data["unit"], data["coords"])


def _plain(values: Array) -> Any:
    if values.dtype.kind == "f":
        rounded = np.round(values.astype(float), 6).astype(object)
        rounded[np.isnan(values)] = None
        return rounded.tolist()
    return values.tolist()


def _has_null(values: Any) -> bool:
    return any(map(_has_null, values)) if isinstance(values, list) else values is None
