"""GQA (Hudson & Manning 2019, https://arxiv.org/abs/1902.09506): test-dev balanced, exact match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record, grouped
from visipruner.evaluation.datasets.reading import check_keys, needed, read_json, read_questions


class Gqa(Benchmark):
    """The gold file is the official one, named after the question file, in data/ or data/questions1.2/."""

    name = "gqa"
    title = "GQA"
    patterns: ClassVar[tuple[str, ...]] = ("llava_gqa_testdev_balanced.jsonl", "llava_gqa_*.jsonl")
    metric = "exact match with the one answer, lower case, without a full stop"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        data = questions.parent / "data"
        official = f"{questions.stem.removeprefix('llava_gqa_')}_questions.json"
        path = needed(cls.title, data / official, data / "questions1.2" / official, data / "questions" / official)
        gold = read_json(path)
        root = needed(cls.title, data / "images", questions.parent / "images")
        samples = []
        for sample in read_questions(questions, root):
            known = gold.get(sample.id)
            check_keys(path, f"question {sample.id}", known, ("answer", "types"))
            samples.append(replace(sample, answers=(str(known["answer"]),), type=str(known["types"]["structural"])))
        return cls.checked(questions, samples)

    def score(self, record: Record, answer: str) -> float:
        return float(answer.strip().rstrip(".").lower() == record["answers"][0].lower())

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        kinds = grouped(records, lambda record: "open" if record["type"] == "query" else "binary")
        found = {kind: self.accuracy(kinds[kind], method) for kind in ("binary", "open") if kind in kinds}
        return {"scores": {"accuracy": self.accuracy(records, method), **found}, "parts": {}}
