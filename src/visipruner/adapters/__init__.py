"""Model families, one declarative file each, looked up by `config.model_type`."""

from __future__ import annotations

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
    qwen_vl,
    text,
)
from visipruner.adapters.base import Adapter
from visipruner.errors import UnsupportedModelError

_ADAPTERS: tuple[Adapter, ...] = (
    llava.ADAPTER,
    llava_next.ADAPTER,
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


def supported() -> dict[str, str]:
    """`{model_type: family}` for every model type that can be attached to."""
    return {model_type: adapter.family for adapter in _ADAPTERS for model_type in adapter.model_types}


def adapter_for(config: Any) -> Adapter:
    """The adapter of a model's config. Raises UnsupportedModelError with the list of what is supported."""
    model_type = getattr(config, "model_type", None)
    for adapter in _ADAPTERS:
        if model_type in adapter.model_types:
            return adapter
    known = ", ".join(sorted(supported()))
    raise UnsupportedModelError(
        f"Models of type {model_type!r} are not supported; supported types are {known}. "
        "Pass attach(..., adapter=Adapter(...)) to describe another family."
    )


__all__ = ["Adapter", "adapter_for", "supported"]
