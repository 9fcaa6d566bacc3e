"""A plain figure of labelled arrays: curves over layers, bars over conditions, maps over layers and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Labelled
from visipruner.analysis.intervals import Bootstrap

_SIZE = (6.4, 2.4)


def draw(name: str, arrays: Mapping[str, Labelled]) -> Any:
    """A matplotlib figure with one panel an array; a leading axis "sample" is averaged, its 95 % interval shaded.

    Raises ImportError where matplotlib is missing (`pip install 'visipruner[report]'`).
    """
    from matplotlib.figure import Figure

    shown = {title: array for title, array in arrays.items() if _is_drawable(array)}
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] * len(shown)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(shown), 1))
    for panel, (title, array) in zip(panels, shown.items(), strict=True):
        _draw_one(panel, array)
        panel.set_title(title.replace("_", " "), loc="left", fontsize="medium")
    figure.suptitle(name.replace("_", " "))
    return figure


def _is_drawable(array: Labelled) -> bool:
    axes = len(array.dims) - ("sample" in array.dims)
    return axes in (1, 2) and array.unit not in ("token", "token id") and not bool(np.isnan(array.values).all())


def _draw_one(panel: Any, array: Labelled) -> None:
    values, dims = array.values.astype(float), array.dims
    low = high = None
    if dims[0] == "sample":
        curve = Bootstrap(list(range(len(values)))).curve(values.reshape(len(values), -1))
        values, low, high = (curve[name].reshape(values.shape[1:]) for name in ("mean", "low", "high"))
        dims = dims[1:]
    labels = array.labels(dims[-1])
    if len(dims) == 2:
        image = panel.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
        panel.figure.colorbar(image, ax=panel, label=array.unit)
        panel.set_ylabel(dims[0])
    elif all(isinstance(label, (int, float)) for label in labels):
        panel.plot(labels, values)
        if low is not None:
            panel.fill_between(labels, low, high, alpha=0.25)
        panel.set_ylabel(array.unit)
    else:
        places = np.arange(len(labels))
        error = None if low is None else np.abs([values - low, high - values])
        panel.bar(places, values, yerr=error)
        panel.set_xticks(places, labels, rotation=30, ha="right", fontsize="small")
        panel.set_ylabel(array.unit)
    panel.set_xlabel(dims[-1])
