"""What an analysis returns: labelled arrays, and a word on what they do not cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Labelled
from visipruner.analysis.figure import draw


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
        return draw(self.name, self.arrays)

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
