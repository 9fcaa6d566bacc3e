"""MMStar (Chen et al. 2024, https://arxiv.org/abs/2403.20330): six categories of 250 questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Record, grouped, percent
from visipruner.evaluation.datasets.embedded import EmbeddedImages, image_folder, image_of, prompt_of
from visipruner.evaluation.datasets.reading import LETTER_ANSWER, read_tsv
from visipruner.evaluation.samples import Sample


class MmStar(EmbeddedImages):
    """Read from VLMEvalKit's MMStar.tsv; the parquet file with the same questions is not read."""

    name = "mmstar"
    title = "MMStar"
    patterns: ClassVar[tuple[str, ...]] = ("MMStar*.tsv", "MMStar*.parquet")
    metric = "accuracy of the letter in each category, and their mean"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.suffix == ".parquet":
            raise ConfigError(
                f"{questions} is not read; put VLMEvalKit's MMStar.tsv, the same questions, in its place."
            )
        rows = {row["index"]: row for row in read_tsv(questions, "index", "question", "answer", "category", "image")}
        folder, temporary = image_folder(images)
        samples, encoded = [], {}
        for row in rows.values():
            image, encoded_image = image_of(rows, row, folder)
            encoded[image] = encoded_image
            prompt = prompt_of(row, LETTER_ANSWER)
            answers = (row["answer"].strip(),)
            samples.append(Sample(image, prompt, answers, row["category"], row["index"], name=image.name))
        return cls(questions, samples, encoded, temporary)

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        parts = {
            category: {"accuracy": percent(self.scores(members, method))}
            for category, members in grouped(records, lambda record: str(record["type"])).items()
        }
        mean = sum(part["accuracy"] for part in parts.values()) / len(parts)
        return {"scores": {"mean of categories": mean}, "parts": parts}
