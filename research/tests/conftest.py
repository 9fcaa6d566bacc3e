"""A tiny model of the small one's kind, and synthetic emoji: everything the tests need offline."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from research.scenes import TRAIN_STYLES, UNSEEN_STYLE, EmojiArt
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
    """A folder like the one `fetch` makes: a coloured blob for every object and style."""
    root = tmp_path_factory.mktemp("emoji")
    codes = [*OBJECTS.values(), *UNSEEN_OBJECTS.values()]
    for style in (*TRAIN_STYLES, UNSEEN_STYLE):
        (root / style).mkdir()
        for number, code in enumerate(codes):
            picture = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
            color = (number * 37 % 256, number * 91 % 256, number * 53 % 256, 255)
            ImageDraw.Draw(picture).ellipse((2, 2, 21, 21), fill=color)
            picture.save(root / style / f"{code}.png")
    return root


@pytest.fixture(scope="session")
def art(emoji: Path) -> EmojiArt:
    return EmojiArt(emoji)
