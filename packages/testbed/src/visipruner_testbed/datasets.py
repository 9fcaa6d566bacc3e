"""The test set's parts for `visipruner eval --data`, found through the entry point group `visipruner.datasets`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record
from visipruner.evaluation.samples import load_samples
from visipruner.evaluation.scoring import right_by_any
from visipruner_testbed.testset import DATA_FOLDER, QUESTIONS_FILE


class _Part(Benchmark):
    """A part that ships; `part` is its folder."""

    patterns: ClassVar[tuple[str, ...]] = ()
    metric = "normalised exact match with the answer"
    part: ClassVar[str]

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        """Of this package; both arguments are unused."""
        file = DATA_FOLDER / cls.part / QUESTIONS_FILE
        return cls(file, load_samples(file))

    def score(self, record: Record, answer: str) -> float | None:
        return right_by_any(answer, record["answers"])


class Local(_Part):
    """A small thing, word or number, or one odd among many, holds the answer: at most 2 % of the visual tokens."""

    name = package = "testbed-local"
    title = "small things"
    part = "local"


class Many(_Part):
    """Many tokens hold the answer: counts over the whole picture, and the ground that covers most of it."""

    name = package = "testbed-many"
    title = "crowds and mosaics"
    part = "many"


class Documents(_Part):
    """A page of short lines: the word after a label, or the label before a word."""

    name = package = "testbed-documents"
    title = "pages"
    part = "documents"
