"""VQA v2 (Goyal et al. 2017, https://arxiv.org/abs/1612.00837): test-dev for the server, or validation, scored here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Record, answer_of, write_submission
from visipruner.evaluation.datasets.reading import (
    SHORT_ANSWER,
    check_images,
    check_keys,
    needed,
    read_json,
    read_jsonl,
    with_suffix,
)
from visipruner.evaluation.datasets.vqa import SoftVqa, normalize_answer, normalize_reference, soft_accuracy
from visipruner.evaluation.samples import Sample

_VALIDATION = "v2_OpenEnded_mscoco_val2014_questions.json"
_ALL_TEST = "llava_vqav2_mscoco_test2015.jsonl"


class VqaV2(SoftVqa):
    """With the official validation files the answers are known; with LLaVA's question files they are the server's."""

    name = "vqav2"
    title = "VQAv2"
    patterns: ClassVar[tuple[str, ...]] = ("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_*.jsonl", _VALIDATION)

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.name.lower() == _VALIDATION.lower():
            return cls(questions, _validation(cls.title, questions))
        root = needed(cls.title, questions.parent / "test2015")
        samples = [
            Sample(root / line["image"], line["text"], (), "", str(line["question_id"]))
            for line in read_jsonl(questions, "question_id", "image", "text")
        ]
        check_images(cls.title, samples)
        found = cls(questions, samples)
        found.server = "EvalAI's VQA challenge"
        if not (questions.parent / _ALL_TEST).exists():
            found.notes.append(
                f"Without {_ALL_TEST} the submission holds only the questions asked; the server wants all."
            )
        return found

    def score(self, record: Record, answer: str) -> float | None:
        """What the official evaluation gives to the text that `submission` would hand in."""
        if not record["answers"]:
            return None
        submitted = normalize_answer(answer)
        answers = [" ".join(one.split()) for one in record["answers"]]
        if len(set(answers)) == 1:  # the official evaluation normalises only where people disagreed
            return soft_accuracy(submitted, answers)
        return soft_accuracy(normalize_reference(submitted), [normalize_reference(one) for one in answers])

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path | None:
        if not self.server:
            return None
        given = {record["id"]: normalize_answer(answer_of(record, method)) for record in records}
        whole = self.questions.parent / _ALL_TEST
        wanted = [
            line["question_id"] for line in read_jsonl(whole if whole.exists() else self.questions, "question_id")
        ]
        if not whole.exists():
            wanted = [one for one in wanted if str(one) in given]
        return write_submission(stem, [{"question_id": one, "answer": given.get(str(one), "")} for one in wanted])


def _validation(title: str, questions: Path) -> list[Sample]:
    root = needed(title, questions.parent / "val2014")
    path = needed(title, questions.parent / "v2_mscoco_val2014_annotations.json")
    known = {one["question_id"]: one for one in read_json(path, "annotations")["annotations"]}
    samples = []
    for one in read_json(questions, "questions")["questions"]:
        truth = known.get(one["question_id"], {})
        check_keys(path, f"question {one['question_id']}", truth, ("answers", "answer_type"))
        image = root / f"COCO_val2014_{one['image_id']:012d}.jpg"
        answers = tuple(given["answer"] for given in truth["answers"])
        prompt = with_suffix(one["question"], SHORT_ANSWER)
        samples.append(Sample(image, prompt, answers, truth["answer_type"], str(one["question_id"])))
    check_images(title, samples)
    return samples
