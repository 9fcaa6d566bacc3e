"""Visual rows of models that mark them in `input_ids` with placeholder tokens, which the model then overwrites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.adapters.base import Locate
from visipruner.contract.layout import ImageTokens
from visipruner.errors import LayoutError


@dataclass(frozen=True)
class Placeholder:
    """One kind of placeholder token.

    Attributes:
        token: attribute of the model's config with the token's id.
        inputs: what fills it: pairs of the pixels' keyword argument and the key of the same features, encoded
            beforehand, in `mm_encoder_outputs` (`generate` hands those over in place of the pixels).
    """

    token: str
    inputs: tuple[tuple[str, str], ...]


IMAGE = Placeholder("image_token_id", (("pixel_values", "image"),))
VIDEO = Placeholder("video_token_id", (("pixel_values_videos", "video"),))


def rows_of(*placeholders: Placeholder) -> Locate:
    """A `locate` for models whose visual rows are the rows of `placeholders`.

    Raises LayoutError for pixels that fill none of them: hosts let unknown arguments pass, and would not see them.
    """
    read = {pixels for kind in placeholders for pixels, _ in kind.inputs}

    def locate(model: nn.Module, call: Mapping[str, Any]) -> Tensor | None:
        for name, given in call.items():
            if name.startswith("pixel_values") and name not in read and given is not None:
                raise LayoutError(f"This model does not read {name}; leave them out, or pass frames as images.")
        if call.get("input_ids") is None and not any(_is_filled(kind, call) for kind in placeholders):
            return None
        return torch.stack([_rows(model, call, kind) for kind in placeholders]).any(0)

    return locate


def _rows(model: nn.Module, call: Mapping[str, Any], kind: Placeholder) -> Tensor:
    """`[batch, seq]` bool, the rows that the model will fill with features of this kind."""
    config: Any = model.config
    token, ids, filled = getattr(config, kind.token), call.get("input_ids"), _is_filled(kind, call)
    if ids is None:
        embeds: Tensor = call["inputs_embeds"]
        if not filled:
            return torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        embed: Any = model.get_input_embeddings()  # type: ignore[operator]
        same: Tensor = (embeds == embed(torch.tensor(token, device=embeds.device))).all(-1)
        return same
    mask: Tensor = ids == token
    if filled or not bool(mask.any()):
        return mask
    cache = call.get("cache")
    if cache is None or cache.get_seq_length() == 0:
        names = " or ".join(pixels for pixels, _ in kind.inputs)
        raise LayoutError(
            f"The prompt has image tokens but no {names}; pass the processor's {names}, or remove the image from the "
            "prompt."
        )
    return torch.zeros_like(mask)  # the model itself said the image token: a word like any other


def _is_filled(kind: Placeholder, call: Mapping[str, Any]) -> bool:
    encoded = call.get("mm_encoder_outputs") or {}
    return any(call.get(pixels) is not None or encoded.get(key) is not None for pixels, key in kind.inputs)


def encoded_sizes(call: Mapping[str, Any], key: str = "image") -> list[int] | None:
    """Tokens of each image where its features were encoded beforehand, else None."""
    encoded = (call.get("mm_encoder_outputs") or {}).get(key)
    features = getattr(encoded, "pooler_output", None)
    return None if features is None else [int(part.shape[-2]) for part in features]


def image_sizes(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens]:
    """An `images` for images of any number of tokens that are no grid; images side by side are told apart only where
    they come encoded."""
    sizes = encoded_sizes(call) or [end - start for _, start, end in runs(mask)]
    return [ImageTokens(size) for size in sizes]


def sizes_without_videos(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens]:
    """As `image_sizes`; a prompt with videos is split by its text."""
    has_video = call.get("pixel_values_videos") is not None or encoded_sizes(call, "video") is not None
    return image_sizes(model, {} if has_video else call, mask)


def equal_squares(model: nn.Module, call: Mapping[str, Any], mask: Tensor) -> list[ImageTokens] | None:
    """An `images` for images (or crops) that are all the same square of tokens."""
    pixels, sizes = call.get("pixel_values"), encoded_sizes(call)
    count = len(sizes) if sizes is not None else 0 if pixels is None else int(pixels.shape[0])
    side = round((int(mask.sum()) / count) ** 0.5) if count else 0
    return one_grid(side, side, int(mask.sum()))


def broken_rows(sizes: list[int] | None, pixels: Tensor | None, step: int, mask: Tensor) -> list[ImageTokens] | None:
    """Images whose rows of tokens are parted by a token of text, known by `sizes`, or by heights and widths in pixels.

    An image's rows are unbroken runs of one length; how many belong together, its number of tokens says. `step` is
    the number of pixels a token is wide and high.
    """
    if sizes is None and pixels is not None:
        sizes = [int(height) // step * (int(width) // step) for height, width in pixels]
    if sizes is None:
        return None
    widths = [end - start for _, start, end in runs(mask)]
    found = []
    for size in sizes:
        width = widths[0] if widths else 0
        height = size // width if width else 0
        is_grid = height * width == size and widths[:height] == [width] * height
        found.append(ImageTokens(size, (height, width) if is_grid else None))
        widths = widths[height:]
    return found


def one_grid(rows: int, columns: int, total: int) -> list[ImageTokens] | None:
    """`total` tokens as images of one grid, or None where they are no multiple of it."""
    size = rows * columns
    return None if size == 0 or total % size else [ImageTokens(size, (rows, columns))] * (total // size)


def runs(mask: Tensor) -> Iterator[tuple[int, int, int]]:
    """Unbroken runs of True in `[batch, seq]`: (example, first row, row after the last)."""
    for example, flags in enumerate(mask):
        edges = torch.nn.functional.pad(flags.int(), (1, 1)).diff()
        starts, ends = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
        yield from ((example, start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
