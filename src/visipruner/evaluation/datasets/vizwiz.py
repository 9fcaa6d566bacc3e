"""VizWiz-VQA (Gurari et al. 2018, https://arxiv.org/abs/1802.08218): test for the server, or val.json, scored here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Record, answer_of, write_submission
from visipruner.evaluation.datasets.reading import (
    SHORT_ANSWER,
    check_images,
    needed,
    read_json,
    read_jsonl,
    with_suffix,
)
from visipruner.evaluation.datasets.vqa import SoftVqa, normalize_answer
from visipruner.evaluation.samples import Sample

_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(SoftVqa):
    """Test answers are not public; the official val.json has ten answers to each question."""

    name = "vizwiz"
    title = "VizWiz"
    patterns: ClassVar[tuple[str, ...]] = ("llava_test.jsonl", "val.json")

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.suffix == ".json":
            return cls(questions, _validation(cls.title, questions))
        root = needed(cls.title, questions.parent / "test")
        samples = [
            Sample(root / line["image"], line["text"], (), "", str(line["question_id"]))
            for line in read_jsonl(questions, "question_id", "image", "text")
        ]
        check_images(cls.title, samples)
        found = cls(questions, samples)
        found.server = "EvalAI's VizWiz challenge"
        return found

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path | None:
        if not self.server:
            return None
        answers = [
            {"image": Path(record["image"]).name, "answer": normalize_answer(answer_of(record, method))}
            for record in records
        ]
        return write_submission(stem, answers)


def _validation(title: str, questions: Path) -> list[Sample]:
    root = needed(title, questions.parent / "val")
    samples = []
    for number, one in enumerate(read_json(questions)):
        prompt = with_suffix(f"{one['question']}\n{_UNANSWERABLE}", SHORT_ANSWER)
        answers = tuple(given["answer"] for given in one["answers"])
        samples.append(Sample(root / one["image"], prompt, answers, one.get("answer_type", ""), str(number)))
    check_images(title, samples)
    return samples
