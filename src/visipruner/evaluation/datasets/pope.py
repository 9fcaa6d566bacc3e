"""POPE (Li et al. 2023, https://arxiv.org/abs/2305.10355): is there this object? Three ways to choose objects."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark, Record, answer_of, grouped, type_of
from visipruner.evaluation.datasets.reading import SHORT_ANSWER, needed, read_jsonl
from visipruner.evaluation.samples import Sample


def yes_or_no(answer: str) -> str:
    """ "no" where the first sentence has the word "No", "no" or "not", else "yes"; commas do not count."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def rates(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 ("yes" is positive) and share of "yes", in per cent, of (given, right)."""
    count = Counter(pairs)
    hits, false_alarms, misses = count["yes", "yes"], count["yes", "no"], count["no", "yes"]
    precision = hits / (hits + false_alarms) if hits else 0.0
    recall = hits / (hits + misses) if hits else 0.0
    found = {
        "accuracy": (hits + count["no", "no"]) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": (hits + false_alarms) / len(pairs),
    }
    return {name: 100 * value for name, value in found.items()}


class Pope(Benchmark):
    """Labels come from coco/coco_pope_*.json, one file a category of the question file."""

    name = "pope"
    title = "POPE"
    patterns: ClassVar[tuple[str, ...]] = ("llava_pope_test.jsonl", "llava_pope_*.jsonl")
    metric = 'accuracy, precision, recall, F1 and share of "yes", for each way to choose objects'

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        lines = read_jsonl(questions, "question_id", "image", "text", "category")
        root = needed(cls.title, questions.parent / "val2014", questions.parent / "images")
        samples = []
        for category in dict.fromkeys(str(line["category"]) for line in lines):
            asked = [line for line in lines if line["category"] == category]
            file = f"coco_pope_{category}.json"
            path = needed(cls.title, questions.parent / "coco" / file, questions.parent / file)
            labels = _labels(asked, path)
            samples += [
                Sample(root / line["image"], line["text"], (label,), category, f"{category}/{line['question_id']}")
                for line, label in zip(asked, labels, strict=True)
            ]
        return cls.checked(questions, samples)

    def score(self, record: Record, answer: str) -> float:
        return float(yes_or_no(answer) == record["answers"][0])

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        parts = {
            category: rates([(yes_or_no(answer_of(one, method)), one["answers"][0]) for one in members])
            for category, members in grouped(records, type_of).items()
        }
        mean = sum(part["f1"] for part in parts.values()) / len(parts)
        return {
            "scores": {**{f"F1 {name}": part["f1"] for name, part in parts.items()}, "F1 mean": mean},
            "parts": parts,
        }


def _labels(asked: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """The official labels. Both files are in the same order as a rule; where a category was shortened in one of
    them, image and object find the label."""
    known = read_jsonl(path, "image", "text", "label")
    if [line["image"] for line in asked] == [line["image"] for line in known]:
        return [str(line["label"]) for line in known]
    by_question = {_asked_about(line): str(line["label"]) for line in known}
    labels = []
    for line in asked:
        question = _asked_about(line)
        if question not in by_question:
            raise ConfigError(
                f"POPE's {path} has no label for question {line['question_id']} about {line['image']}; the question "
                "file and the labels are not of the same version."
            )
        labels.append(by_question[question])
    return labels


def _asked_about(line: Mapping[str, Any]) -> tuple[str, str]:
    """Image and object. LLaVA's file has the benchmark's first wording, "an umbrella in the imange", and the labels of
    today have another."""
    question = line["text"].replace(SHORT_ANSWER, "").strip()
    return line["image"], re.sub(r"^Is there an? (.+) in the \w+\?$", r"\1", question)
