"""Image-question pairs of one's own, from a JSONL file: scored by normalised exact match."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record
from visipruner.evaluation.samples import load_samples
from visipruner.evaluation.scoring import right_by_any


class OwnQuestions(Benchmark):
    """What `samples.load_samples` reads; answers may be unknown."""

    name = "own"
    title = "own questions"
    patterns: ClassVar[tuple[str, ...]] = ()
    metric = "normalised exact match with any accepted answer"

    @classmethod
    def read(cls, questions: Path, images: Path | None = None) -> Self:
        return cls(questions, load_samples(questions))

    def score(self, record: Record, answer: str) -> float | None:
        return right_by_any(answer, record["answers"])
