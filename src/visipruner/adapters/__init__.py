"""Model families, one declarative file each, looked up by `config.model_type`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from visipruner.adapters import (
    gemma,
    glm4v,
    idefics3,
    internvl,
    llava,
    llava_next,
    llava_onevision,
    mistral3,
    plugins,
    qwen_vl,
    text,
)
from visipruner.adapters.base import Adapter
from visipruner.adapters.placeholders import IMAGE, VIDEO, Placeholder, rows_of
from visipruner.contract.layout import ImageTokens
from visipruner.errors import UnsupportedModelError

BUILT_IN: tuple[Adapter, ...] = (
    llava.ADAPTER,
    llava_next.ADAPTER,
    llava_next.VIDEO_ADAPTER,
    llava_onevision.ADAPTER,
    qwen_vl.QWEN2,
    qwen_vl.QWEN3,
    internvl.ADAPTER,
    idefics3.ADAPTER,
    mistral3.ADAPTER,
    gemma.PALIGEMMA,
    gemma.GEMMA3,
    glm4v.ADAPTER,
    text.ADAPTER,
)


def _serving(model_type: str | None, adapters: Iterable[Adapter]) -> Adapter | None:
    return next((adapter for adapter in adapters if model_type in adapter.model_types), None)


def supported() -> dict[str, str]:
    """`{model_type: family}` for every model type that can be attached to, those of other packages included."""
    known = (*plugins.installed(), *BUILT_IN)
    return {model_type: adapter.family for adapter in known for model_type in adapter.model_types}


def adapter_for(config: Any) -> Adapter:
    """The adapter of a model's config, built in or of another package.

    Raises UnsupportedModelError with the list of what is supported.
    """
    model_type = getattr(config, "model_type", None)
    found = _serving(model_type, BUILT_IN) or _serving(model_type, plugins.installed())
    if found is not None:
        return found
    known = ", ".join(sorted(supported()))
    raise UnsupportedModelError(
        f"Models of type {model_type!r} are not supported; supported types are {known}. "
        "Pass attach(..., adapter=Adapter(...)) to describe another family (docs/families.md)."
    )


__all__ = [
    "BUILT_IN",
    "IMAGE",
    "VIDEO",
    "Adapter",
    "ImageTokens",
    "Placeholder",
    "adapter_for",
    "rows_of",
    "supported",
]
