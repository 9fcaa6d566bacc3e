"""easy-VQA (Victor Zhou 2019, PyPI package easy-vqa, MIT): 9,673 test questions about one coloured shape each."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark, Record
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import normalize

PACKAGE = "easy-vqa"
_KINDS = {
    "yes or no": {"yes", "no"},
    "shape": {"circle", "rectangle", "triangle"},
    "color": {"red", "green", "blue", "black", "gray", "teal", "brown", "yellow"},
}


class EasyVqa(Benchmark):
    """`--data easy-vqa`: the package's own test part, 64 x 64 pixels an image. The questions are asked as they are.

    It is a classification over 13 answers, so an answer counts as the one it names: of the answers of the right one's
    kind (yes and no, shapes, colours) it must name that one alone. Whole sentences are fine.
    """

    name = package = PACKAGE
    title = "easy-VQA"
    patterns: ClassVar[tuple[str, ...]] = ()
    metric = "accuracy of the one answer that is named, among yes and no, the shapes, or the colours"

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
            Sample(Path(paths[number]), text, (answer,), _kind(answer), str(index))
            for index, (text, answer, number) in enumerate(zip(texts, answers, numbers, strict=True))
        ]
        return cls.checked(Path(package.__file__ or PACKAGE), samples)

    def score(self, record: Record, answer: str) -> float:
        right = record["answers"][0]
        kind = next(kind for kind in _KINDS.values() if right in kind)
        return float(kind & set(normalize(answer).split()) == {right})


def _kind(answer: str) -> str:
    return next(name for name, answers in _KINDS.items() if answer in answers)
