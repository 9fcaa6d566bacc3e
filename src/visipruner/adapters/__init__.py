"""Model families: what a model says about itself, and beside it one file for each family that needs more words."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from torch import nn

from visipruner.adapters import generic, plugins
from visipruner.adapters.base import Adapter
from visipruner.adapters.placeholders import IMAGE, VIDEO, Placeholder, rows_of
from visipruner.contract.layout import ImageTokens


def _discovered() -> tuple[Adapter, ...]:
    """The adapters that the files beside this one declare."""
    files = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return tuple(value for file in files for value in vars(file).values() if isinstance(value, Adapter))


BUILT_IN = _discovered()


def _serving(model_type: str | None, adapters: Iterable[Adapter]) -> Adapter | None:
    return next((adapter for adapter in adapters if model_type in adapter.model_types), None)


def supported() -> dict[str, str]:
    """`{model_type: family}` for every model type that somebody described, those of other packages included."""
    known = (*plugins.installed(), *BUILT_IN)
    return {model_type: adapter.family for adapter in known for model_type in adapter.model_types}


def described(config: Any) -> Adapter | None:
    """The adapter that somebody wrote for a model's config, here or in another package, None where nobody did."""
    model_type = getattr(config, "model_type", None)
    return _serving(model_type, BUILT_IN) or _serving(model_type, plugins.installed())


def adapter_of(model: nn.Module) -> Adapter:
    """The adapter of a stock model: one that somebody wrote, else what the model says about itself.

    Raises UnsupportedModelError with the reason where it has something that cannot be pruned.
    """
    return generic.completed(model, described(model.config))


__all__ = [
    "BUILT_IN",
    "IMAGE",
    "VIDEO",
    "Adapter",
    "ImageTokens",
    "Placeholder",
    "adapter_of",
    "described",
    "rows_of",
    "supported",
]
