"""What every benchmark is: samples, a score for one answer, the published aggregates, perhaps a file for a server."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from visipruner.evaluation.datasets.reading import check_images
from visipruner.evaluation.samples import Sample, spread
from visipruner.files import write_atomic

Record = Mapping[str, Any]
T = TypeVar("T")


class Benchmark(ABC):
    """Questions in the order of their file, each sample with an `id` of its own.

    Attributes:
        name: for `--benchmark`; `title`: as its authors write it.
        patterns: names of its question file, the usual one first; in a folder the first that is there counts.
        package: for `--data`, a package that holds it; then `read` is given no file. "" where files hold it.
        metric: how answers are scored, as half a sentence.
        server: who scores where the answers are not public; "" where they are.
        notes: what a reader of the scores must know about these files (parts left out, say), as sentences.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    metric: ClassVar[str]
    package: ClassVar[str] = ""
    server: str = ""

    def __init__(self, questions: Path, samples: Sequence[Sample], notes: Iterable[str] = ()) -> None:
        self.questions = questions
        self.samples = [sample.named_from(questions.parent) for sample in samples]
        self.notes = list(notes)

    @classmethod
    def checked(cls, questions: Path, samples: Sequence[Sample], *notes: str, server: str = "") -> Self:
        """A benchmark whose images are there; `server` as the class has it. Raises ConfigError where one is missing."""
        check_images(cls.title, samples)
        found = cls(questions, samples, notes)
        found.server = server or cls.server
        return found

    @classmethod
    @abstractmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        """From the question file and what lies beside it.

        Args:
            images: a folder for images that the question file itself holds; None for a temporary one.

        Raises ConfigError that names what is missing.
        """

    def choose(self, count: int, seed: int) -> list[Sample]:
        """`count` samples, spread over images and types; a smaller `count` gives the first of a larger one."""
        return spread(self.samples, count, seed)

    def prepare(self, samples: Sequence[Sample]) -> None:
        """Makes the images of `samples` files, where the question file holds them."""
        return None

    @abstractmethod
    def score(self, record: Record, answer: str) -> float | None:
        """Of one answer, between 0 and 1; None where the right answer is not public."""

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        """The aggregates that are published, in their published units (per cent; points for MME).

        `{"scores": {name: value}, "parts": {part: {name: value}}}`: the first go into the table. Empty where the
        accuracy over all samples is what is published, or the answers are not public.
        """
        return {}

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path | None:
        """Writes what the server takes to `stem` with a suffix; None where there is nothing to submit."""
        return None

    def accuracy(self, records: Sequence[Record], method: str) -> float:
        return percent(self.scores(records, method))

    def accuracy_by_type(self, records: Sequence[Record], method: str) -> dict[str, dict[str, float]]:
        """`parts` of `official` where nothing but the mean score is published of each type."""
        return {kind: {"accuracy": self.accuracy(own, method)} for kind, own in grouped(records, type_of).items()}

    def scores(self, records: Sequence[Record], method: str) -> list[float]:
        """Of one method's answers, in the order of `records`; the right answers must be public."""
        found = [self.score(record, answer_of(record, method)) for record in records]
        return [score for score in found if score is not None]


def answer_of(record: Record, method: str) -> str:
    return str(record["given"][method]["answer"])


def percent(values: Iterable[float]) -> float:
    """The mean in per cent; 0 of nothing."""
    listed = list(values)
    return 100 * sum(listed) / len(listed) if listed else 0.0


def type_of(record: Record) -> str:
    return str(record["type"])


def grouped(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    """Items by what `key` says of them, in the order of their first."""
    groups: dict[str, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def whole_groups(samples: Sequence[Sample], key: Callable[[Sample], str], count: int, seed: int) -> list[Sample]:
    """Groups that are only worth something whole (a question's rotations, an image's pair), spread over types, as
    many as fit into `count` samples; one at least."""
    groups = grouped(samples, key)
    chosen: list[Sample] = []
    for first in spread([group[0] for group in groups.values()], len(groups), seed):
        group = groups[key(first)]
        if chosen and len(chosen) + len(group) > count:
            break
        chosen += group
    return chosen


def write_submission(stem: Path, content: Any) -> Path:
    path = stem.with_name(f"{stem.name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, ensure_ascii=False)
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path
