"""easy-VQA (Victor Zhou 2019, PyPI package easy-vqa, MIT): 9,673 test questions about one coloured shape each."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar, Self

from visipruner.benchmarks.base import Benchmark, Record
from visipruner.benchmarks.reading import SHORT_ANSWER, check_images, with_suffix
from visipruner.errors import ConfigError
from visipruner.samples import Sample
from visipruner.scoring import is_right

PACKAGE = "easy-vqa"
_SHAPES = {"circle", "rectangle", "triangle"}


class EasyVqa(Benchmark):
    """`--data easy-vqa`: the package's own test part, 64 x 64 pixels an image."""

    name = PACKAGE
    title = "easy-VQA"
    patterns: ClassVar[tuple[str, ...]] = ()
    metric = "normalised exact match with the one answer"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        """Of the installed package; both arguments are unused."""
        try:
            package = importlib.import_module("easy_vqa")
        except ImportError as error:
            raise ConfigError(
                "easy-VQA is a package that is not installed; install it with: pip install 'visipruner[easy-vqa]'"
            ) from error
        texts, answers, numbers = package.get_test_questions()
        paths = package.get_test_image_paths()
        samples = [
            Sample(Path(paths[number]), with_suffix(text, SHORT_ANSWER), (answer,), _kind(answer), str(index))
            for index, (text, answer, number) in enumerate(zip(texts, answers, numbers, strict=True))
        ]
        check_images(cls.title, samples)
        return cls(Path(package.__file__ or PACKAGE), samples)

    def score(self, record: Record, answer: str) -> float:
        return float(is_right(answer, record["answers"][0]))


def _kind(answer: str) -> str:
    if answer in {"yes", "no"}:
        return "yes or no"
    return "shape" if answer in _SHAPES else "color"
