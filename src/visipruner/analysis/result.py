"""What an analysis returns: labelled arrays, a word on what they do not cover, and a plain figure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Labelled, Told
from visipruner.analysis.evidence import Bootstrap


@dataclass(frozen=True, eq=False)
class Result(Told):
    """One analysis of one or many prompts.

    Attributes:
        name: of the analysis. arrays: what it found. not_covered: what the numbers do not say.
    """

    name: str
    arrays: Mapping[str, Labelled]
    not_covered: Sequence[str] = ()

    def __getitem__(self, name: str) -> Labelled:
        return self.arrays[name]

    def figure(self) -> Any:
        """A matplotlib figure, one panel an array: curves over layers, bars over conditions, maps over two axes.

        A leading axis "sample" is averaged, its 95 % interval shaded. Raises ImportError where matplotlib is missing
        (`pip install 'visipruner[report]'`).
        """
        from matplotlib.figure import Figure

        shown = {title: array for title, array in self.arrays.items() if _is_drawable(array)}
        figure = Figure(figsize=(6.4, 2.4 * len(shown)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(shown), 1))
        for panel, (title, array) in zip(panels, shown.items(), strict=True):
            _draw(panel, array)
            panel.set_title(title.replace("_", " "), loc="left", fontsize="medium")
        figure.suptitle(self.name.replace("_", " "))
        return figure

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """What `to_dict` gave, also after JSON."""
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
            if all(part.shape == shape for part in parts):
                stacked = np.stack(parts)
            else:
                stacked = np.full((len(parts), *shape), np.nan)
                for place, part in zip(stacked, parts, strict=True):
                    place[tuple(map(slice, part.shape))] = part
            coords = {
                dim: labels
                for dim, labels in first.coords.items()
                if all(result.arrays[name].labels(dim) == list(labels) for result in results)
            }
            arrays[name] = Labelled(stacked, ("sample", *first.dims), first.unit, coords)
        return cls(results[0].name, arrays, results[0].not_covered)


def _is_drawable(array: Labelled) -> bool:
    axes = len(array.dims) - ("sample" in array.dims)
    return axes in (1, 2) and array.unit not in ("token", "token id") and not bool(np.isnan(array.values).all())


def _draw(panel: Any, array: Labelled) -> None:
    values, dims = array.values.astype(float), array.dims
    low = high = None
    if dims[0] == "sample":
        values, low, high = Bootstrap(range(len(values))).curve(values).values()
        dims = dims[1:]
    labels = array.labels(dims[-1])
    panel.set_xlabel(dims[-1])
    panel.set_ylabel(dims[0] if len(dims) == 2 else array.unit)
    if len(dims) == 2:
        image = panel.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
        panel.figure.colorbar(image, ax=panel, label=array.unit)
    elif all(isinstance(label, (int, float)) for label in labels):
        panel.plot(labels, values)
        if low is not None:
            panel.fill_between(labels, low, high, alpha=0.25)
    else:
        places = np.arange(len(labels))
        panel.bar(places, values, yerr=None if low is None else np.abs([values - low, high - values]))
        panel.set_xticks(places, labels, rotation=30, ha="right", fontsize="small")
