"""MME (Fu et al. 2023, https://arxiv.org/abs/2306.13394): two yes-or-no questions an image, in points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark, Record, grouped, percent, type_of, whole_groups
from visipruner.evaluation.datasets.reading import SHORT_ANSWER, needed, read_questions, read_text
from visipruner.evaluation.samples import Sample

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_INSTRUCTION = "Please answer yes or no."


def yes_or_no(answer: str) -> str:
    """What the first four characters say, or "other", which is never right."""
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


class Mme(Benchmark):
    """A category scores accuracy + accuracy+ (both questions of an image right), 0 to 200 points."""

    name = "mme"
    title = "MME"
    patterns: ClassVar[tuple[str, ...]] = ("llava_mme.jsonl", "llava_mme*.jsonl")
    metric = "points: accuracy + accuracy+ in each category, summed over perception and over cognition"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        release = questions.parent / "MME_Benchmark_release_version"
        root = release / "MME_Benchmark" if (release / "MME_Benchmark").is_dir() else needed(cls.title, release)
        truths: dict[str, dict[tuple[str, str], str]] = {}
        samples = []
        for number, asked in enumerate(read_questions(questions, root)):
            category, stem, text = asked.id.split("/")[0], Path(asked.id).stem, _bare(asked.question)
            if category not in truths:
                truths[category] = _truths(root / category)
            answer = truths[category].get((stem, text))
            if answer is None:
                raise ConfigError(f"MME is incomplete: {root / category} has no answer to {text!r}, {stem}.")
            key = f"{category}/{stem}/{number}"
            samples.append(replace(asked, image=_image(asked.image), answers=(answer,), type=category, id=key))
        return cls.checked(questions, samples)

    def choose(self, count: int, seed: int) -> list[Sample]:
        return whole_groups(self.samples, lambda sample: str(sample.image), count, seed)

    def score(self, record: Record, answer: str) -> float:
        return float(yes_or_no(answer) == record["answers"][0])

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        parts = {}
        for category, members in grouped(records, type_of).items():
            images = grouped(members, lambda record: str(record["image"]))
            both = [float(min(self.scores(pair, method))) for pair in images.values() if len(pair) == 2]
            accuracy, plus = percent(self.scores(members, method)), percent(both)
            parts[category] = {"accuracy": accuracy, "accuracy+": plus, "score": accuracy + plus}
        sums = {
            name: sum(parts[category]["score"] for category in categories if category in parts)
            for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION))
        }
        return {"scores": {**sums, "total": sum(sums.values())}, "parts": parts}


def _truths(folder: Path) -> dict[tuple[str, str], str]:
    """By text file (an image's name) and question; the files lie beside the images, or in a folder of their own."""
    nested = folder / "questions_answers_YN"
    found = {}
    for path in sorted((nested if nested.is_dir() else folder).glob("*.txt")):
        for line in read_text(path).split("\n"):
            question, tab, answer = line.partition("\t")
            if tab:
                found[path.stem, _bare(question)] = answer.strip().lower()
    return found


def _bare(question: str) -> str:
    return " ".join(question.replace(SHORT_ANSWER, "").replace(_INSTRUCTION, "").split())


def _image(path: Path) -> Path:
    """Question files name images without the folder that some categories have for them."""
    nested = path.parent / "images" / path.name
    return nested if not path.is_file() and nested.is_file() else path
