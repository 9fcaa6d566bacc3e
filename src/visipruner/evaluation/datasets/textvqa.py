"""TextVQA (Singh et al. 2019, https://arxiv.org/abs/1904.08920): validation 0.5.1, with LLaVA's OCR hints."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.reading import check_images, needed, read_json, read_jsonl
from visipruner.evaluation.datasets.vqa import SoftVqa
from visipruner.evaluation.samples import Sample


class TextVqa(SoftVqa):
    """The prompt's first line that is no hint is the question; it and the image's id find the ten answers."""

    name = "textvqa"
    title = "TextVQA"
    patterns: ClassVar[tuple[str, ...]] = ("llava_textvqa_val_v051_ocr.jsonl", "llava_textvqa_*.jsonl")

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        root = needed(
            cls.title, questions.parent / "train_images", questions.parent / "train_val_images" / "train_images"
        )
        path = needed(cls.title, questions.parent / "TextVQA_0.5.1_val.json")
        known = {(str(one["image_id"]), one["question"].lower()): one for one in read_json(path, "data")["data"]}
        samples = []
        seen: dict[str, int] = {}
        for line in read_jsonl(questions, "question_id", "image", "text"):
            image = str(line["question_id"])
            found = known.get((image, _question(line["text"])))
            if found is None:
                raise ConfigError(
                    f"{path} has no answers to {_question(line['text'])!r} about {image}; get version 0.5.1."
                )
            seen[image] = seen.get(image, 0) + 1  # question_id is the image's; an image may be asked several things
            answers = tuple(map(str, found["answers"]))
            samples.append(Sample(root / line["image"], line["text"], answers, "", f"{image}/{seen[image]}"))
        check_images(cls.title, samples)
        return cls(questions, samples)


def _question(prompt: str) -> str:
    """Of lines (question, OCR hint, instruction), in either order of the first two."""
    lines = [line for line in prompt.split("\n") if not line.startswith("Reference OCR token:")]
    return lines[0].lower()
