"""A checkpoint's processor. Those that also read videos need torchvision; without it they are made for images only."""

from __future__ import annotations

from typing import Any


def load(source: str, model_type: str, **rules: Any) -> Any:
    """The processor of a checkpoint of `model_type`; `rules` go to `from_pretrained`, whose errors come through."""
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
    from transformers.utils import is_torchvision_available

    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is not None and not is_torchvision_available():
        stock: Any = processor_class_from_name(name)
        if "video_processor" in stock.get_attributes():
            return images_only(stock).from_pretrained(source, **rules)
    return AutoProcessor.from_pretrained(source, **rules)


def images_only(stock: Any) -> Any:
    """The processor class `stock` without its video processor, which transformers cannot build without torchvision.

    Everything else, prompts and chat templates included, is the stock class's own.
    """

    class ImagesOnly(stock):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in stock.get_attributes() if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **settings: Any) -> Any:
            return super().from_args_and_dict([*args, None], processor_dict, **settings)  # no video processor

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = stock.__name__  # what `save_pretrained` writes down
    return ImagesOnly
