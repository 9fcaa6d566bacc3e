"""What an analysis returns: arrays with names on their axes, a unit, and a word on what they do not cover."""

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


@dataclass(frozen=True, eq=False)
class Result:
    """One analysis of one or many prompts.

    Attributes:
        name: of the analysis. arrays: what it found. not_covered: what the numbers do not say.
    """

    name: str
    arrays: Mapping[str, Labelled]
    not_covered: Sequence[str] = ()

    def __getitem__(self, name: str) -> Labelled:
        return self.arrays[name]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "not_covered": list(self.not_covered),
            "arrays": {name: array.to_dict() for name, array in self.arrays.items()},
        }

    def figure(self) -> Any:
        """A matplotlib figure, one panel an array."""
        from visipruner.analysis.figure import draw

        return draw(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        arrays = {name: Labelled.from_dict(array) for name, array in data["arrays"].items()}
        return cls(data["name"], arrays, data["not_covered"])

    @classmethod
    def stack(cls, results: Sequence[Result]) -> Result:
        """Results of several prompts as one, with a leading axis "sample".

        Axes that differ in length between prompts are filled up with NaN at the end; labels that differ are left out.
        """
        arrays = {}
        for name, first in results[0].arrays.items():
            parts = [result.arrays[name].values for result in results]
            shape = tuple(max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True))
            whole = all(part.shape == shape for part in parts)
            stacked = np.full((len(parts), *shape), np.nan, dtype=float) if not whole else np.stack(parts)
            if not whole:
                for place, part in zip(stacked, parts, strict=True):
                    place[tuple(slice(size) for size in part.shape)] = part
            coords = {
                dim: labels
                for dim, labels in first.coords.items()
                if all(result.arrays[name].labels(dim) == list(labels) for result in results)
            }
            arrays[name] = Labelled(stacked, ("sample", *first.dims), first.unit, coords)
        return cls(results[0].name, arrays, results[0].not_covered)


def _plain(values: Array) -> Any:
    if values.dtype.kind == "f":
        rounded = np.round(values.astype(float), 6).astype(object)
        rounded[np.isnan(values)] = None
        return rounded.tolist()
    return values.tolist()


def _has_null(values: Any) -> bool:
    return any(map(_has_null, values)) if isinstance(values, list) else values is None
