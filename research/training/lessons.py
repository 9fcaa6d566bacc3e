"""What a training shows: drawn scenes, and pictures of easy-VQA's training part."""

import importlib
import random
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from research.scenes import EmojiArt, Question, draw_example, draw_small_example
from research.training.recipe import Recipe
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.easyvqa import PACKAGE


class Lessons:
    """The pictures of a training in their order, each with its questions; `lesson(i)` is always the same.

    Raises ConfigError when the recipe asks for easy-VQA and the package is not installed.
    """

    def __init__(self, recipe: Recipe, emoji: Path) -> None:
        self.recipe, self.art = recipe, EmojiArt(emoji)
        self._package: Any = _easy_vqa() if recipe.easy_vqa_every else None

    def lesson(self, image: int) -> tuple[Image.Image, list[Question]]:
        """The `image`-th picture and what is asked about it."""
        if self._package is not None and self.recipe.is_easy_vqa(image):
            return self._easy_vqa(image)
        recipe, part = self.recipe, self.recipe.part(image)
        if part == "plain":
            options, mix = recipe.options(image), recipe.mix(image)
            example = draw_example(recipe.seed, image, self.art, options, recipe.questions, mix)
        else:
            example = draw_small_example(recipe.seed, image, self.art, part, recipe.questions)
        return example.picture, example.questions

    def _easy_vqa(self, image: int) -> tuple[Image.Image, list[Question]]:
        number = random.Random(f"{self.recipe.seed}/{PACKAGE}/{image}").randrange(len(self._paths))
        with Image.open(self._paths[number]) as opened:
            return opened.convert("RGB"), self._asked[number][: self.recipe.questions]

    @cached_property
    def _paths(self) -> dict[int, str]:
        return dict(self._package.get_train_image_paths())

    @cached_property
    def _asked(self) -> dict[int, list[Question]]:
        texts, answers, numbers = self._package.get_train_questions()
        asked: dict[int, list[Question]] = {}
        for text, answer, number in zip(texts, answers, numbers, strict=True):
            asked.setdefault(number, []).append(Question(text, answer, PACKAGE))
        return asked


def _easy_vqa() -> Any:
    try:
        return importlib.import_module("easy_vqa")
    except ImportError as error:
        raise ConfigError(
            "Training needs easy-VQA's training part, a package that is not installed; install it with: "
            "pip install 'visipruner[easy-vqa]'"
        ) from error
