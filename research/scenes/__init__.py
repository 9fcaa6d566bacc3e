"""Scenes with known contents: what they hold (`scene`), how they are drawn at random (`layout`, `render`), what is
asked (`questions`) and how often (`mixes`)."""

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from research.scenes.layout import LayoutOptions, draw_scene
from research.scenes.mixes import EVEN, MIXES, Mix
from research.scenes.questions import SCOPES, Question, ask
from research.scenes.render import CANVAS, EmojiArt, render
from research.scenes.scene import Scene
from research.scenes.vocabulary import OBJECTS

TRAIN_STYLES = ("noto", "fluent")
UNSEEN_STYLE = "twemoji"

__all__ = [
    "CANVAS",
    "EVEN",
    "MIXES",
    "SCOPES",
    "TRAIN_STYLES",
    "UNSEEN_STYLE",
    "EmojiArt",
    "Example",
    "LayoutOptions",
    "Mix",
    "Question",
    "Scene",
    "draw_example",
]


@dataclass(frozen=True)
class Example:
    """A drawn scene: RGB picture, `owner` [height, width] (item index per pixel, -1 background), and its questions."""

    scene: Scene
    picture: Image.Image
    owner: np.ndarray
    questions: list[Question]


def draw_example(
    seed: str, index: int, art: EmojiArt, options: LayoutOptions, questions: int, mix: Mix = EVEN
) -> Example:
    """The `index`-th example of a seed; the same arguments give the same picture and the same questions.

    Seeds are strings so that training ("train-0"), warm start and test draws can never meet.
    """
    rng = Random(f"{seed}/{index}")
    scene = draw_scene(rng, options)
    picture, owner = render(scene, art)
    return Example(scene, picture, owner, ask(scene, rng, questions, tuple(OBJECTS), mix))
