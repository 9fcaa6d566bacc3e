"""A smaller picture: fewer visual tokens from the start, vision tower included. The control to beat."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from visipruner.contract.picture import PictureMethod
from visipruner.contract.pruner import About
from visipruner.errors import ConfigError

if TYPE_CHECKING:
    from visipruner.chat import ChatPrompt


@dataclass(frozen=True, kw_only=True)
class Downsample(PictureMethod):
    """The picture is shown at the size that gives it about `keep_ratio` of its visual tokens; the model is left alone.

    Where the processor's tokens follow the picture (Qwen-VL, GLM-4V, Pixtral) the picture is resized; where it cuts
    tiles (InternVL, Idefics3), fewer are allowed; where every picture has the same size (LLaVA) that size becomes
    smaller, which needs a vision tower that interpolates its position embeddings, as DINOv2 does and CLIP does not.
    Sizes are whole patches (or tiles), the nearest to what was asked; a picture that is one tile stays as it is.

    Attributes:
        keep_ratio: share of the visual tokens, above 0 to 1; a quarter is half the height and half the width.
    """

    name: ClassVar[str] = "downsample"
    about: ClassVar[About] = About(
        "a smaller picture, a control",
        paper="as in arXiv 2510.07143",
        acts="before the prompt is made",
        needs="the picture",
    )
    match_tolerance: ClassVar[float] = 0.1

    keep_ratio: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio must lie above 0 and at most at 1, got {self.keep_ratio}.")

    def shown(self, prompt: ChatPrompt) -> ChatPrompt:
        return prompt.smaller(*_smaller(prompt, self.keep_ratio))


def _smaller(prompt: ChatPrompt, share: float) -> tuple[Any, Image.Image]:
    """The processor and the picture with which a prompt has about `share` of its visual tokens."""
    processor, picture = prompt.processor, prompt.picture
    images = processor.image_processor
    size = _given(getattr(images, "size", None))
    if "image_grid_thw" in prompt:
        step = images.patch_size * images.merge_size
        rows, columns = (int(side) // images.merge_size for side in prompt["image_grid_thw"][0, 1:])
        # Small pictures would be enlarged again.
        return _with(processor, size={**size, "shortest_edge": 1}), _resized(picture, rows, columns, step, share)
    if "image_sizes" in prompt and set(size) == {"longest_edge"}:
        step = processor.patch_size * getattr(processor, "spatial_merge_size", 1)
        rows, columns = (int(side) // step for side in prompt["image_sizes"][0])
        return processor, _resized(picture, rows, columns, step, share)
    if hasattr(images, "max_patches"):  # tiles, and an overview where there are several
        most = max(1, round(len(prompt["pixel_values"]) * share) - 1)
        return _with(processor, min_patches=1, max_patches=most), picture
    if set(size) == {"longest_edge"} and hasattr(images, "max_image_size"):
        tile = _given(images.max_image_size)["longest_edge"]
        side = max(1, round(size["longest_edge"] / tile * share**0.5))
        return _with(processor, size={"longest_edge": side * tile}), picture
    return _with(processor, **_square(images, size, prompt.model.config.vision_config.patch_size, share)), picture


def _resized(picture: Image.Image, rows: int, columns: int, step: int, share: float) -> Image.Image:
    """The picture, `rows` x `columns` tokens of `step` pixels until now, with about `share` of them, in its shape."""
    fewer = max(1, round(rows * share**0.5))
    narrower = min(columns, max(1, round(share * rows * columns / fewer)))
    return picture.resize((narrower * step, fewer * step), Image.Resampling.BICUBIC)


def _square(images: Any, size: Mapping[str, int], patch: int, share: float) -> dict[str, Any]:
    """The sizes of a processor that shows every picture in one size, scaled to a whole number of patches."""
    crop = _given(getattr(images, "crop_size", None))
    seen = crop if crop and getattr(images, "do_center_crop", False) else size
    side = seen.get("height", seen.get("shortest_edge", 0)) // patch
    if side == 0 or seen.get("width", 0) not in (0, seen.get("height")):
        raise ConfigError(
            f"downsample does not know how {type(images).__name__} chooses a picture's size; give the model smaller "
            "pictures yourself."
        )
    fewer = max(1, round(side * share**0.5))
    scaled = {"size": size, "crop_size": crop}
    return {
        name: {edge: round(pixels * fewer / side) for edge, pixels in edges.items()}
        for name, edges in scaled.items()
        if edges
    }


def _given(size: Any) -> dict[str, int]:
    """A size's edges, those left open not among them."""
    return {} if size is None else {edge: value for edge, value in dict(size).items() if value is not None}


def _with(processor: Any, **settings: Any) -> Any:
    """A copy of the processor whose image processor has these settings; the rest is shared."""
    changed = copy.copy(processor)
    changed.image_processor = copy.copy(processor.image_processor)
    for name, value in settings.items():
        if isinstance(value, dict):
            value = type(getattr(processor.image_processor, name))(**value)
        setattr(changed.image_processor, name, value)
    return changed
