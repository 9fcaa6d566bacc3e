"""A checkpoint's processor. Those that also read videos need torchvision; without it they are made for images only."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def load(source: str, model_type: str, **rules: Any) -> Any:
    """The processor of a checkpoint of `model_type`; `rules` go to `from_pretrained`, whose errors come through."""
    from transformers import AutoProcessor, ProcessorMixin

    try:
        settings, _ = ProcessorMixin.get_processor_dict(source, **rules)
    except (OSError, ValueError):  # no file of that name: older checkpoints
        settings = {}
    kind = _without_torchvision(settings, model_type) or AutoProcessor
    processor = kind.from_pretrained(source, **rules)
    if not getattr(processor, "chat_template", None) and "chat_template" in settings:
        processor.chat_template = settings["chat_template"]  # Chameleon's and Fuyu's classes leave it out
    return processor


def _without_torchvision(settings: dict[str, Any], model_type: str) -> Any:
    """A class in place of the stock one that the checkpoint names, or that its type has, where that one cannot be made
    without torchvision; else None."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name
    from transformers.utils import is_torchvision_available

    name = settings.get("processor_class") or PROCESSOR_MAPPING_NAMES.get(model_type)
    if name is None or is_torchvision_available():
        return None
    if name == "PixtralProcessor":
        return pixtral()
    stock = processor_class_from_name(name)
    return images_only(stock) if stock is not None and "video_processor" in stock.get_attributes() else None


class _NoVideos:
    """Whatever a processor asks of its video processor, there is none; a file's name is empty."""

    font = ""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def images_only(stock: Any) -> Any:
    """The processor class `stock` without its video processor, which transformers cannot build without torchvision.

    Everything else, prompts and chat templates included, is the stock class's own.
    """
    from transformers import ProcessorMixin

    place = stock.get_attributes().index("video_processor")

    class WithoutVideos(ProcessorMixin):  # type: ignore[misc]
        def __init__(self, *parts: Any, video_processor: None = None, **settings: Any) -> None:
            super().__init__(*(part for part in parts if part is not None), **settings)

    class ImagesOnly(stock, WithoutVideos):  # type: ignore[misc]
        video_processor = _NoVideos()  # SmolVLM and MiniCPM-V ask it, also where there is no video

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in stock.get_attributes() if name != "video_processor"]

        @classmethod
        def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **settings: Any) -> Any:
            return super().from_args_and_dict([*args[:place], None, *args[place:]], processor_dict, **settings)

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = stock.__name__  # what `save_pretrained` writes down
    return ImagesOnly


def pixtral() -> Any:
    """transformers' PixtralProcessor, also without torchvision.

    Its module imports one function from beside the torchvision image processor, although the PIL image processor's
    module has the same one; that module stands in while it is imported.
    """
    package = "transformers.models.pixtral"
    wanted = f"{package}.image_processing_pixtral"
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        sys.modules[wanted] = importlib.import_module(f"{package}.image_processing_pil_pixtral")
    try:
        return importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
    finally:
        if not is_torchvision_available():
            del sys.modules[wanted]
