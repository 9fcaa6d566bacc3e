"""What an analysis returns: arrays with named axes and a unit, how sure their means are, their JSON, a plain figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


RESAMPLES = 2000
_ENDS = (0.025, 0.975)
ENOUGH = 10  # images; of fewer a percentile bootstrap covers clearly less than it says


@dataclass(frozen=True)
class Interval(Told):
    """A number with its 95 % interval; `low` and `high` are NaN (JSON: null) where there is none, as of one image."""

    value: float
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """`low` and `high`, or the value twice where they are not known."""
        return float(np.fmin(self.low, self.value)), float(np.fmax(self.high, self.value))


class Bootstrap:
    """Resamples whole images with all their questions (percentile bootstrap, 95 %). One image has no intervals.

    Args:
        clusters: per sample, which image it belongs to. seed: of the resampling.
    """

    def __init__(self, clusters: Sequence[Any], seed: int = 0, resamples: int = RESAMPLES) -> None:
        names = list(dict.fromkeys(clusters))
        self.images = len(names)
        member = np.array([names.index(cluster) for cluster in clusters])
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        self.weights = draws[:, member].astype(float)  # [resamples, samples]

    def means(self, values: Array) -> Array:
        """`[resamples, ...]`: weighted means of `values` `[samples, ...]`; NaN values are left out."""
        known = ~np.isnan(values)
        total = np.tensordot(self.weights, np.where(known, values, 0.0), axes=1)
        count = np.tensordot(self.weights, known.astype(float), axes=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(total / np.where(count > 0, count, np.nan))

    def curve(self, values: Array) -> dict[str, Array]:
        """Mean, low and high of `values` `[samples, ...]`, each `[...]`; NaN where nothing is known."""
        means = self.means(values)
        with np.errstate(invalid="ignore"):
            known = ~np.isnan(values)
            mean = np.where(known, values, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)
            low, high = np.quantile(means if self.images > 1 else np.full_like(means, np.nan), _ENDS, axis=0)
        return {"mean": mean, "low": low, "high": high}

    def mean(self, values: Array) -> Interval:
        """The mean of `values` `[samples]`."""
        return self.interval(lambda curve: float(curve[0]), values[:, None])

    def interval(self, statistic: Callable[[Array], float], values: Array) -> Interval:
        """A statistic of the mean curve: its value on all samples, and where 95 % of the resamples put it.

        The interval always holds the value: the first of many layers with a loss need not lie where the resamples put
        it, as in one of so many layers each of them loses by chance."""
        point = statistic(self.curve(values)["mean"])
        if self.images == 1:
            return Interval(float(point), np.nan, np.nan)
        drawn = np.array([statistic(curve) for curve in self.means(values)])
        low, high = np.quantile(drawn, _ENDS, method="nearest")
        return Interval(float(point), float(min(low, point)), float(max(high, point)))


def few_images(count: int, done: str) -> list[str]:
    """A note where there are too few images for their intervals; `done` is what was done with them, "analysed"."""
    if count >= ENOUGH:
        return []
    if count == 1:
        return [f"Only one image was {done}, which gives no intervals; take {ENOUGH} or more."]
    return [f"Only {count} images were {done}: the 95 % intervals of so few are too narrow; take {ENOUGH} or more."]


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
