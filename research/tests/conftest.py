"""A tiny model of the small one's kind, and synthetic pictures: everything the tests need offline."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.scenes import TRAIN_STYLES, UNSEEN_STYLE, EmojiArt
from research.scenes.photographs import KEPT, KEPT_KINDS, TRAINED, style_of
from research.scenes.vocabulary import OBJECTS, UNSEEN_OBJECTS
from tests.byte_llava import make_model, make_processor


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return make_processor()


@pytest.fixture
def model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    return make_model(processor)


@pytest.fixture(scope="session")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one `fetch` makes: a coloured blob for every object and style, and for every photograph."""
    root = tmp_path_factory.mktemp("emoji")
    codes = [*OBJECTS.values(), *UNSEEN_OBJECTS.values()]
    photographs = [
        style_of(file) for named in (TRAINED, KEPT, KEPT_KINDS) for files in named.values() for file in files
    ]
    drawings = [f"{style}/{code}" for style in (*TRAIN_STYLES, UNSEEN_STYLE) for code in codes]
    for number, name in enumerate([*drawings, *photographs]):
        picture = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
        color = (number * 37 % 256, number * 91 % 256, number * 53 % 256, 255)
        ImageDraw.Draw(picture).ellipse((2, 2, 21, 21), fill=color)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / f"{name}.png")
    return root


@pytest.fixture(scope="session")
def art(emoji: Path) -> EmojiArt:
    return EmojiArt(emoji)
