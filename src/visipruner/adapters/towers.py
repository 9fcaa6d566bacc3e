"""Which patches of the vision tower a visual token is made of: one function per kind of connector.

Each is told what a model was asked to encode and answers with a table, a line per visual token in the order of the
features. Attention, keys and features of the tower are averaged over a token's patches, as most connectors average or
weigh features over the same square.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers.image_processing_utils import select_best_resolution

MAX_SIDE = 4  # the largest square of patches that a known model makes one token of
Kind = Literal["image", "video"]


@dataclass(frozen=True)
class Encoded:
    """One call of a model's `get_image_features` or `get_video_features`.

    Attributes:
        kind: which of them. call: its arguments by name.
        rows: how many rows the tower had of every picture that attends to itself alone (image, crop, video frame).
        tokens: how many visual tokens were made of them all.
        prefixes: how many rows may come before a picture's patches: a class token and registers, or none.
    """

    kind: Kind
    call: Mapping[str, Any]
    rows: Sequence[int]
    tokens: int
    prefixes: tuple[int, ...] = (0,)


@dataclass(frozen=True, eq=False)
class TokenPatches:
    """The patches that visual tokens are made of.

    Attributes:
        patches: `[tokens, k]` long, counted through all pictures. prefix: rows before the patches of each picture.
        shares: `[tokens, k]` float32, their parts; zeros where there are fewer, and for newline features, which hold no
            patch. None where all are alike.
    """

    patches: Tensor
    prefix: int = 0
    shares: Tensor | None = None


# What an adapter says: (embedder, what it was asked to encode) to the table, or None where it does not fit.
Patches = Callable[[Any, Encoded], TokenPatches | None]


# ---- one picture, one grid ------------------------------------------------------------------------------------------


def squares(model: Any, seen: Encoded) -> TokenPatches | None:
    """Equal pictures, of which each token is a patch or a square of neighbouring ones, line by line."""
    if len(set(seen.rows)) != 1 or seen.tokens % len(seen.rows):
        return None
    tokens = seen.tokens // len(seen.rows)
    for side in range(1, MAX_SIDE + 1):
        for prefix in seen.prefixes:
            patches = tokens * side**2
            line = math.isqrt(patches)
            if patches + prefix == seen.rows[0] and (side == 1 or (line**2 == patches and line % side == 0)):
                one = torch.arange(patches)[:, None] if side == 1 else grid_squares(line, line, side)
                return TokenPatches(_repeated(one, patches, len(seen.rows)), prefix)
    return None


def sized_squares(model: Any, seen: Encoded) -> TokenPatches:
    """Pixtral's encoder: images of any size, line by line; Mistral 3 makes a token of every `spatial_merge_size`
    squared, and none of patches that are left over at the right and below."""
    patch, side = model.config.vision_config.patch_size, getattr(model.config, "spatial_merge_size", 1)
    sizes = seen.call.get("image_sizes")
    pixels = seen.call["pixel_values"]
    listed = [pixels.shape[-2:]] * len(pixels) if sizes is None else torch.as_tensor(sizes).tolist()
    found, start = [], 0
    for height, width in listed:
        rows, columns = height // patch, width // patch
        found.append(grid_squares(rows, columns, side) + start)
        start += rows * columns
    return TokenPatches(torch.cat(found))


def merged(model: Any, seen: Encoded) -> TokenPatches | None:
    """Qwen-VL and GLM-V: patches come square by square, `spatial_merge_size` squared for each token; in towers with
    windows the squares come window by window, and the tokens line by line again."""
    square, rest = divmod(sum(seen.rows), seen.tokens)
    if rest or math.isqrt(square) ** 2 != square:
        return None
    vision, order = model.config.vision_config, torch.arange(seen.tokens)
    if getattr(vision, "fullatt_block_indexes", None) is not None:
        side = vision.window_size // vision.spatial_merge_size // vision.patch_size
        parts, start = [], 0
        for frames, height, width in seen.call[f"{seen.kind}_grid_thw"].tolist():
            lines, columns = height // vision.spatial_merge_size, width // vision.spatial_merge_size
            parts.append(_repeated(window_places(lines, columns, side), lines * columns, frames) + start)
            start += frames * lines * columns
        order = torch.cat(parts)
    return TokenPatches(order[:, None] * square + torch.arange(square))


def merged_pairs(model: Any, seen: Encoded) -> TokenPatches | None:
    """ERNIE-VL: the same of an image; of a video, two frames make one, square by square."""
    if seen.kind == "image":
        return merged(model, seen)
    square, found, start = model.config.vision_config.spatial_merge_size**2, [], 0
    for frames, height, width in _grids(seen):
        one = torch.arange(height * width).view(-1, square)
        for first in range(0, frames, 2):
            second = min(first + 1, frames - 1)
            found.append(start + torch.cat([one + first * height * width, one + second * height * width], 1))
        start += frames * height * width
    return TokenPatches(torch.cat(found))


def lines(model: Any, seen: Encoded) -> TokenPatches:
    """Patches come line by line, frame by frame, and every square of them makes a token. The layer that is looked at
    may have squares already (MiniCPM-V merges within its tower)."""
    grids = _grids(seen)
    step = math.isqrt(sum(map(math.prod, grids)) // sum(seen.rows))
    side = math.isqrt(sum(seen.rows) // seen.tokens)
    found, start = [], 0
    for frames, height, width in grids:
        rows, columns = height // step, width // step
        found.append(_repeated(grid_squares(rows, columns, side), rows * columns, frames) + start)
        start += frames * rows * columns
    return TokenPatches(torch.cat(found))


def framed_lines(model: Any, seen: Encoded) -> TokenPatches:
    """HunYuan-VL: the same, with a newline feature after each line of tokens, and one before and after each image."""
    side, start = model.config.vision_config.spatial_merge_size, 0
    found: list[Tensor] = []
    shares: list[Tensor] = []
    for _, height, width in _grids(seen):
        squares_of = grid_squares(height, width, side).view(height // side, width // side, side**2)
        for parts, of_image in ((found, squares_of + start), (shares, torch.full_like(squares_of, 1) / side**2)):
            ended = functional.pad(of_image, (0, 0, 0, 1)).flatten(0, 1)
            parts.append(functional.pad(ended, (0, 0, 1, 1)))
        start += height * width
    return _table(found, shares, 0)


def windowed_lines(model: Any, seen: Encoded) -> TokenPatches:
    """Muse: squares of patches, whose rows the tower has window by window."""
    vision, found, start = model.config.vision_config, [], 0
    for frames, height, width in _grids(seen):
        place = window_places(height, width, vision.pos_emb_height)
        one = place[grid_squares(height, width, vision.merge_size)]
        found.append(_repeated(one, height * width, frames) + start)
        start += frames * height * width
    return TokenPatches(torch.cat(found))


def pooled_positions(model: Any, seen: Encoded) -> TokenPatches:
    """Gemma 4: patches come with their column and line, -1 where there is none; every square of them makes a token."""
    side, found, start = math.isqrt(sum(seen.rows) // seen.tokens), [], 0
    for each in seen.call[f"{seen.kind}_position_ids"].flatten(0, -3).cpu():
        column, line = each[(each >= 0).all(-1)].unbind(-1)
        number = column // side + (int(column.max()) + 1) // side * (line // side)
        found.append(number.argsort(stable=True).view(-1, side**2) + start)
        start += len(number)
    return TokenPatches(torch.cat(found))


def listed(model: Any, seen: Encoded) -> TokenPatches:
    """Molmo 2: the call itself lists the patches of every token, -1 where there is none."""
    pools = next(pools for name, pools in seen.call.items() if name.endswith("_token_pooling")).cpu()
    pools = pools[(pools >= 0).any(-1)]
    is_patch = pools >= 0
    return TokenPatches(pools.clamp(min=0), 0, is_patch / is_patch.sum(-1, keepdim=True))


def _grids(seen: Encoded) -> list[list[int]]:
    """Frames, lines and columns of patches of every picture, as the call tells them."""
    names = (f"{seen.kind}_grid_thw", "target_sizes", "target_sizes_videos", "spatial_shapes")
    told = next(seen.call[name] for name in names if seen.call.get(name) is not None)
    return [[1] * (3 - len(sizes)) + sizes for sizes in told.tolist()]


def grid_squares(rows: int, columns: int, side: int) -> Tensor:
    """`[tokens, side * side]` long: the patches of each square of a grid `rows` x `columns`, both line by line."""
    lines, places = rows // side, columns // side
    whole = torch.arange(rows * columns).view(rows, columns)[: lines * side, : places * side]
    return whole.reshape(lines, side, places, side).transpose(1, 2).reshape(lines * places, side**2)


def window_places(rows: int, columns: int, side: int) -> Tensor:
    """`[rows * columns]` long: where a token of the grid is when windows of `side` x `side` come one after another."""
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None]
    window = (row // side) * columns + column // side
    return (window * rows * columns + row * columns + column).flatten().argsort().argsort()


def _repeated(one: Tensor, patches: int, pictures: int) -> Tensor:
    """The table of one picture of so many patches for some pictures alike."""
    starts = torch.arange(pictures) * patches
    return (starts.view(-1, *[1] * one.ndim) + one).flatten(0, 1)


# ---- crops joined, frames pooled -------------------------------------------------------------------------------------


def joined_crops(model: Any, seen: Encoded) -> TokenPatches:
    """LLaVA-NeXT and LLaVA-OneVision: a view of the whole image, then its crops joined, cut to the image, made smaller
    where they are too many, each line ended by a newline feature. The model's own function lays out places of patches
    in the place of their features."""
    side, settings = _side(model), _settings(model.pack_image_features, model.config, seen.call)
    sizes = torch.as_tensor(seen.call["image_sizes"]).cpu()
    alone = [True] * len(sizes)
    if seen.call.get("batch_num_images") is not None:
        alone = [int(count) == 1 for count in seen.call["batch_num_images"] for _ in range(int(count))]
    found, shares, start = [], [], 0
    for size, is_alone in zip(sizes, alone, strict=True):
        best = select_best_resolution(size.tolist(), model.config.image_grid_pinpoints)
        lines, columns = (length // model.config.vision_config.image_size for length in best)
        crops = _places(1, 1, side, 0)
        if is_alone:
            crops = torch.cat([crops, _places(lines, columns, side, 1)])
        packed, _ = model.pack_image_features([crops], size[None], image_newline=crops.new_full((3,), -1.0), **settings)
        corners, parts = _corners(packed[0][:, 1:])
        crop = 1 + corners[..., 0] // side * columns + corners[..., 1] // side
        crop = torch.where(packed[0][:, :1] > 0.5, crop, 0)  # the first view is a grid of its own
        found.append(start + crop * side**2 + corners[..., 0] % side * side + corners[..., 1] % side)
        shares.append(parts.masked_fill(packed[0][:, :1] < 0, 0))
        start += len(crops) * side**2
    return _table(found, shares, seen.rows[0] - side**2)


def pooled_frames(model: Any, seen: Encoded) -> TokenPatches:
    """LLaVA-OneVision's videos: frames made smaller by half, and a newline feature after each video."""
    side, frames = _side(model), int(seen.call["pixel_values_videos"].shape[1])
    corners, parts = _corners(model.apply_pooling(_places(1, 1, side, 0)[..., 1:])[0])
    one = corners[..., 0] * side + corners[..., 1]
    videos = len(seen.rows) // frames
    found = _repeated(one, side**2, len(seen.rows)).view(videos, -1, one.shape[-1])
    found = functional.pad(found, (0, 0, 0, 1)).flatten(0, 1)
    shares = functional.pad(parts.repeat(frames, 1), (0, 0, 0, 1)).repeat(videos, 1)
    return _table([found], [shares], seen.rows[0] - side**2)


def pooled_squares(model: Any, seen: Encoded) -> TokenPatches:
    """LLaVA-NeXT-Video's videos: frames of which every square makes a token."""
    side, stride = _side(model), model.config.spatial_pool_stride
    table = _repeated(grid_squares(side, side, stride), side**2, len(seen.rows))
    return TokenPatches(table, seen.rows[0] - side**2)


def by_kind(image: Patches, video: Patches) -> Patches:
    """A family that makes tokens of images in one way, and of videos in another."""
    return lambda model, seen: (video if seen.kind == "video" else image)(model, seen)


def _side(model: Any) -> int:
    """Patches in a line of a crop."""
    return int(model.config.vision_config.image_size // model.config.vision_config.patch_size)


def _settings(pack: Any, config: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the call that `pack` takes, else the config's."""
    names = ("vision_feature_select_strategy", "vision_aspect_ratio")
    known = [name for name in names if name in inspect.signature(pack).parameters]
    return {name: getattr(config, name) if call.get(name) is None else call[name] for name in known}


def _places(lines: int, columns: int, side: int, mark: int) -> Tensor:
    """`[crops, patches, 3]` double: `mark`, line and column of every patch among `lines` x `columns` crops joined."""
    row, column = torch.meshgrid(torch.arange(lines * side), torch.arange(columns * side), indexing="ij")
    joined = torch.stack([torch.full_like(row, mark), row, column], -1).double()
    return joined.view(lines, side, columns, side, 3).transpose(1, 2).reshape(lines * columns, side**2, 3)


def _corners(places: Tensor) -> tuple[Tensor, Tensor]:
    """The four patches around places `[n, 2]` between them: `[n, 4, 2]` long, and their bilinear parts `[n, 4]`."""
    low = (places + 1e-6).floor()
    beyond = (places - low).clamp(min=0)
    beyond = torch.where(beyond < 1e-6, 0, beyond)
    steps = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    corners = low[:, None] + steps * (beyond > 0)[:, None]
    parts = torch.where(steps.bool(), beyond[:, None], 1 - beyond[:, None]).prod(-1)
    return corners.clamp(min=0).long(), parts


def _table(found: list[Tensor], shares: list[Tensor], prefix: int) -> TokenPatches:
    """Tables of several pictures as one, without patches that have no part."""
    patches, parts = torch.cat(found), torch.cat(shares).float()
    used = int((parts > 0).any(0).nonzero().max()) + 1
    return TokenPatches(patches[:, :used], prefix, parts[:, :used])


# ---- which layers ---------------------------------------------------------------------------------------------------


def open_layers(config: Any, depth: int) -> list[int]:
    """Layers of a tower whose patches attend to all of their picture; in the others they attend within windows, or do
    not attend at all (convolutions). Where a tower merges patches on its way (MiniCPM-V), those after that."""
    named = getattr(config, "fullatt_block_indexes", None)
    kinds = getattr(config, "layer_types", None)
    if named is None and kinds:
        named = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    if getattr(config, "insert_layer_id", None) is not None:
        named = range(config.insert_layer_id + 1, depth)
    return list(range(depth)) if named is None else sorted(layer for layer in named if 0 <= layer < depth)
