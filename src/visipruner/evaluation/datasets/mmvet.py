"""MM-Vet (Yu et al. 2023, https://arxiv.org/abs/2308.02490): free answers, judged by a GPT-4 that is not asked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record, answer_of, write_submission
from visipruner.evaluation.datasets.reading import check_images, needed, read_json, read_jsonl
from visipruner.evaluation.samples import Sample


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
        for line in read_jsonl(questions, "question_id", "image", "text"):
            key = f"v1_{line['question_id']}"
            kind = "+".join(sorted(known.get(key, {}).get("capability", [])))
            samples.append(Sample(root / line["image"], line["text"], (), kind, key))
        check_images(cls.title, samples)
        return cls(questions, samples)

    def score(self, record: Record, answer: str) -> None:
        return None

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path:
        return write_submission(stem, {record["id"]: answer_of(record, method) for record in records})
