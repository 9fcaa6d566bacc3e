"""Scenes with known contents: what they hold (`scene`), how they are drawn at random (`layout`, `render`), what is
asked (`questions`) and how often (`mixes`)."""

from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image

from research.scenes.layout import LayoutOptions, draw_scene
from research.scenes.mixes import EVEN, MIXES, Mix
from research.scenes.photographs import TRAINED
from research.scenes.questions import SCOPES, Question, ask
from research.scenes.render import CANVAS, EmojiArt, render
from research.scenes.scene import Scene
from research.scenes.small import Look, draw_small, places_told
from research.scenes.vocabulary import OBJECTS

TRAIN_STYLES = ("noto", "fluent")
UNSEEN_STYLE = "twemoji"
TRAIN_LOOK = Look(
    styles=TRAIN_STYLES,
    fonts=("sans", "bold", "mono", "times"),
    grounds=("clouds", "weave", "speckle"),
    papers=("paper",),
    tiles=(5, 6, 7),
    scattered=False,
    noise=9.0,
    photographs=TRAINED,
)
UNSEEN_LOOK = Look(
    styles=(UNSEEN_STYLE,),
    fonts=("serif",),
    grounds=("bricks", "pebbles"),
    papers=("ruled",),
    tiles=(8, 9),
    scattered=True,
)
"""No training scene has anything of it."""

__all__ = [
    "CANVAS",
    "EVEN",
    "MIXES",
    "SCOPES",
    "TRAIN_LOOK",
    "TRAIN_STYLES",
    "UNSEEN_LOOK",
    "UNSEEN_STYLE",
    "EmojiArt",
    "Example",
    "LayoutOptions",
    "Mix",
    "Question",
    "Scene",
    "draw_example",
    "draw_small_example",
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


def draw_small_example(seed: str, index: int, art: EmojiArt, part: str, questions: int) -> Example:
    """The `index`-th training example of a part of `small.PARTS`, with up to `questions` questions."""
    rng = Random(f"{seed}/{part}/{index}")
    scene, asked = draw_small(rng, part, TRAIN_LOOK)
    picture, owner = render(scene, art)
    told = {question.question: question for question in places_told(rng, scene)} if part == "local" else {}
    told |= {one.question.question: one.question for one in asked}
    return Example(scene, picture, owner, rng.sample(list(told.values()), min(questions, len(told))))
