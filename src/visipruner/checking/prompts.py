"""Prompts for a check: of a processor, or for a tiny model made up with features in place of its vision tower."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, Protocol

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from visipruner.chat import templated
from visipruner.checking.tiny import END, IMAGE, START, VIDEO
from visipruner.errors import first_line

Side = Literal["left", "right"]
TOKENS = 12  # of an image of a tiny model
# Time, height and width of its patches, of which four make a token; or a line's end, too; or sixteen; or eight.
GRIDS = ([1, 6, 8], [1, 6, 6], [1, 12, 16], [2, 6, 8])
FORMS = ("list", "stacked", "joined", "by layer")
FEATURES_OF = ("get_image_features", "get_video_features")


@dataclass(frozen=True)
class Asked:
    """A prompt. Attributes: images: their numbers, which tell them apart. words: how much text it has. is_video:
    whether each is a video."""

    images: tuple[int, ...]
    words: int
    is_video: bool = False


class Prompts(Protocol):
    """Makes a model's inputs.

    Attributes:
        videos: whether it makes prompts with videos, "" where the model reads none, else why it cannot make any.
    """

    videos: bool | str

    def inputs(self, asked: Sequence[Asked], side: Side = "left") -> dict[str, Any]:
        """Of one prompt or several, padded on `side`."""

    def more(self) -> Tensor:
        """`[1, k]` long: ids of a second turn."""

    def suppressed(self) -> list[int]:
        """Ids that an answer must not have."""


class ProcessorPrompts:
    """Chat prompts of the model's own processor, about pictures that are drawn."""

    videos: bool | str = ""

    def __init__(self, model: Any, processor: Any, ids: Sequence[int]) -> None:
        self._model, self._processor, self._ids = model, processor, list(ids)

    def inputs(self, asked: Sequence[Asked], side: Side = "left") -> dict[str, Any]:
        conversations = []
        for each in asked:
            content: list[dict[str, Any]] = [{"type": "image", "image": picture(number)} for number in each.images]
            text = "What is in the picture, and where is it? " + "Name every shape. " * each.words
            conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
        options: dict[str, Any] = {"padding": True, "padding_side": side} if len(asked) > 1 else {}
        asked_for = conversations if len(asked) > 1 else conversations[0]
        return templated(self._model, self._processor, asked_for, **options)

    def more(self) -> Tensor:
        ids = self._processor.tokenizer("And what else can be seen?", add_special_tokens=False, return_tensors="pt")
        return ids["input_ids"].to(self._model.device)  # type: ignore[no-any-return]

    def suppressed(self) -> list[int]:
        return self._ids


def picture(number: int) -> Image.Image:
    """Coloured shapes, other ones for every number."""
    image = Image.new("RGB", (336, 336), (235, 235, 225))
    draw = ImageDraw.Draw(image)
    for shape in range(5):
        left, top = (61 * (shape + number)) % 240, (97 * shape + 43 * number) % 240
        colour = tuple((50 + 71 * (shape + part + number)) % 256 for part in range(3))
        (draw.ellipse if (shape + number) % 2 else draw.rectangle)((left, top, left + 80, top + 70), fill=colour)
    return image


class TinyPrompts:
    """Made-up prompts of a tiny model, whose image features are random ones that the pixels' first number names."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._width = model.config.get_text_config(decoder=True).hidden_size
        self._taken: dict[bool, tuple[str, list[int]]] = {}  # by whether of a video: form of features, and grid
        parts = [model, *([model.model] if hasattr(model, "model") else [])]
        self._reads = set().union(*(inspect.signature(part.forward).parameters for part in parts))
        self._is_packed = "target_sizes" in self._reads  # pictures one after another, of sizes told apart
        self._top = set(inspect.signature(model.forward).parameters)
        for part in parts:
            for name in FEATURES_OF:
                if hasattr(type(part), name):
                    self._give_features(part, name)
        told = self._settled(is_video=False)
        if told:
            raise ValueError(f"the plain model takes no features in place of its tower ({told})")
        has_videos = getattr(model.config, "video_token_id", None) == VIDEO and "pixel_values_videos" in self._reads
        self.videos = (self._settled(is_video=True) or True) if has_videos else ""

    def _settled(self, is_video: bool) -> str:
        """Finds the form in which this type wants features of images or videos: its own `get_image_features` gives
        them so. Returns what it says of other forms, empty where there is one."""
        told = []
        for taken in product(FORMS, GRIDS):
            self._taken[is_video] = taken
            try:
                with torch.no_grad():
                    self._model(**self.inputs([Asked((1,), 5, is_video)]), use_cache=False)
                return ""
            except Exception as error:  # whatever a type raises for features of another form
                told.append(f"{type(error).__name__}: {first_line(error)}")
        return "; ".join(dict.fromkeys(told))

    def _give_features(self, part: Any, name: str) -> None:
        def features(*args: Any, **kwargs: Any) -> Any:
            given = (
                args[0] if args else next(given for name, given in kwargs.items() if name.startswith("pixel_values"))
            )
            pixels = given[0] if self._is_packed else given
            numbers = pixels.reshape(pixels.shape[0], -1)[:, 0].round().int().tolist()
            return self._features(numbers, self._taken["video" in name][0])

        known = inspect.signature(getattr(type(part), name))
        own = [parameter for name, parameter in known.parameters.items() if name != "self"]
        features.__signature__ = known.replace(parameters=own)  # type: ignore[attr-defined]
        setattr(part, name, features)

    def _features(self, numbers: Sequence[int], form: str) -> Any:
        made = [torch.randn(4, TOKENS, self._width, generator=torch.Generator().manual_seed(each)) for each in numbers]
        each = [image[0] for image in made]
        levels = [tuple(image[level] for image in made) for level in (1, 2, 3)]
        forms = {"joined": torch.cat(each), "stacked": torch.stack(each)}
        return Features(
            pooler_output=forms.get(form, tuple(each)),
            last_hidden_state=torch.stack(each),
            deepstack_features=_leveled(levels, form),
        )

    def inputs(self, asked: Sequence[Asked], side: Side = "left") -> dict[str, Any]:
        rows = [torch.tensor(self._ids(each)) for each in asked]
        ids = pad_sequence(rows, batch_first=True, padding_side=side)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side=side)
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        types = (ids == IMAGE) + 2 * (ids == VIDEO)
        kinds = [name for name in self._reads if name.endswith("mm_token_type_ids")]
        if not kinds and "token_type_ids" in self._top:
            kinds = ["token_type_ids"]
        given.update(dict.fromkeys(kinds, types))
        numbers = [number for each in asked for number in each.images]
        given.update(self._visuals(numbers, asked[0].is_video) if numbers else {})
        return {name: part.to(self._model.device) for name, part in given.items()}

    def _visuals(self, numbers: Sequence[int], is_video: bool) -> dict[str, Any]:
        """Pixels of images or videos, their first number telling them apart, and what a type wants to know of them."""
        count, grid = len(numbers), self._taken[is_video][1]
        kind, ending = ("video", "_videos") if is_video else ("image", "")
        pixels = torch.tensor(numbers).float()[:, None, None, None].expand(-1, 3, 32, 32)
        if self._is_packed:
            given = {f"pixel_values{ending}": pixels[None], f"target_sizes{ending}": torch.tensor([grid[1:]] * count)}
        else:
            given = {f"pixel_values{ending}": (pixels[:, None] if is_video else pixels).contiguous()}
        more = {f"{kind}_grid_thw": torch.tensor([grid] * count)}
        if not is_video:
            more["image_sizes"] = torch.tensor([[32, 32]] * count)
            more["qformer_input_ids"] = torch.full((count, 3), 5)
            more["high_res_pixel_values"] = pixels
        return given | {name: value for name, value in more.items() if name in self._reads}

    def _ids(self, asked: Asked) -> list[int]:
        draw = torch.Generator().manual_seed(asked.words)
        ids = torch.randint(3, 79, (5,), generator=draw).tolist()
        for _ in asked.images:
            ids += [
                START,
                *[VIDEO if asked.is_video else IMAGE] * TOKENS,
                END,
                *torch.randint(3, 79, (2,), generator=draw).tolist(),
            ]
        return ids + torch.randint(3, 79, (asked.words,), generator=draw).tolist()

    def more(self) -> Tensor:
        return torch.tensor([[11, 37, 23, 64]], device=self._model.device)

    def suppressed(self) -> list[int]:
        return list(range(79, 100))


def _leveled(levels: Sequence[tuple[Tensor, ...]], form: str) -> list[Any]:
    """Features that are added between layers, of `levels` of all images."""
    if form == "by layer":
        return list(enumerate(levels))
    return [deep if form == "list" else torch.cat(deep) for deep in levels]


class Features(dict[str, Any]):
    """What an encoder gives, whichever of its fields a type asks for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, (int, slice)) else super().__getitem__(key)
