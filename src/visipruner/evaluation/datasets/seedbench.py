"""SEED-Bench (Li et al. 2023, https://arxiv.org/abs/2307.16125): images, and the middle frames of videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.evaluation.datasets.base import Record, grouped, percent
from visipruner.evaluation.datasets.choices import MultipleChoice
from visipruner.evaluation.datasets.reading import check_images, check_keys, needed, read_json, read_jsonl
from visipruner.evaluation.samples import Sample

_FRAMES = "SEED-Bench-video-image"


class SeedBench(MultipleChoice):
    """Letters are generated, as LLaVA does, not ranked by likelihood. Without the frames only images are asked."""

    name = "seedbench"
    title = "SEED-Bench"
    patterns: ClassVar[tuple[str, ...]] = ("llava-seed-bench.jsonl",)
    metric = "accuracy of the letter over all questions, those about images, those about videos, and each question type"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        path = needed(cls.title, folder / "SEED-Bench.json")
        needed(cls.title, folder / "SEED-Bench-image")
        document = read_json(path, "question_type", "questions")
        types = {number: name for name, number in document["question_type"].items()}
        truths = {str(one["question_id"]): one for one in document["questions"]}
        samples, left = [], 0
        has_frames = (folder / _FRAMES).is_dir()
        for line in read_jsonl(questions, "question_id", "image", "text"):
            key = str(line["question_id"])
            truth = truths.get(key, {})
            check_keys(path, f"question {key}", truth, ("answer", "question_type_id", "data_type"))
            if truth["data_type"] == "video" and not has_frames:
                left += 1
                continue
            kind = types[truth["question_type_id"]]
            sample_id = f"{truth['data_type']}/{key}"
            samples.append(Sample(folder / line["image"], line["text"], (truth["answer"],), kind, sample_id))
        check_images(cls.title, samples)
        found = cls(questions, samples)
        if left:
            found.notes.append(f"{left} questions about videos are not asked: there is no folder {_FRAMES}.")
        return found

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        media = grouped(records, lambda record: str(record["id"]).partition("/")[0])
        scores = {name: percent(self.scores(media[name], method)) for name in ("image", "video") if name in media}
        parts = {
            kind: {"accuracy": percent(self.scores(members, method))}
            for kind, members in grouped(records, lambda record: str(record["type"])).items()
        }
        return {"scores": {"all": percent(self.scores(records, method)), **scores}, "parts": parts}
