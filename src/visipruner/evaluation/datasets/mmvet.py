"""MM-Vet (Yu et al. 2023, https://arxiv.org/abs/2308.02490): free answers, judged by a GPT-4 that is not asked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record, answer_of, write_submission
from visipruner.evaluation.datasets.reading import needed, read_json, read_questions


class MmVet(Benchmark):
    """mm-vet.json, where it is there, says which capabilities a question needs."""

    name = "mmvet"
    title = "MM-Vet"
    patterns: ClassVar[tuple[str, ...]] = ("llava-mm-vet.jsonl",)
    metric = "not scored here: GPT-4 judges the answers"
    server = "MM-Vet's GPT-4 judge (its notebook or its online evaluator)"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        root = needed(cls.title, folder / "images", folder / "mm-vet" / "images")
        about = next((path for path in (folder / "mm-vet.json", root.parent / "mm-vet.json") if path.exists()), None)
        known = {} if about is None else read_json(about)
        samples = []
        for sample in read_questions(questions, root):
            key = f"v1_{sample.id}"
            samples.append(replace(sample, id=key, type="+".join(sorted(known.get(key, {}).get("capability", [])))))
        return cls.checked(questions, samples)

    def score(self, record: Record, answer: str) -> None:
        return None

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path:
        return write_submission(stem, {record["id"]: answer_of(record, method) for record in records})
