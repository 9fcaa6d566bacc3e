"""ScienceQA (Lu et al. 2022, https://arxiv.org/abs/2209.09513): the test questions that have an image (IMG)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from visipruner.evaluation.datasets.choices import MultipleChoice
from visipruner.evaluation.datasets.reading import (
    LETTER_ANSWER,
    check_images,
    check_keys,
    needed,
    read_json,
    with_suffix,
)
from visipruner.evaluation.samples import Sample

_LETTERS = "ABCDEFGH"


class ScienceQa(MultipleChoice):
    """Questions without an image have no visual token; they are left out, so accuracy is the published IMG accuracy."""

    name = "scienceqa"
    title = "ScienceQA"
    patterns: ClassVar[tuple[str, ...]] = ("llava_test_CQM-A.json",)
    metric = "accuracy of the letter, questions with an image (IMG)"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        problems_file = needed(cls.title, folder / "problems.json")
        problems = read_json(problems_file)
        splits_file = needed(cls.title, folder / "pid_splits.json")
        test = set(map(str, read_json(splits_file, "test")["test"]))
        root = needed(cls.title, folder / "images" / "test", folder / "test")
        lines = [line for line in read_json(questions) if str(line["id"]) in test]
        samples = []
        for line in lines:
            if "image" not in line:
                continue
            key = str(line["id"])
            problem = problems.get(key)
            check_keys(problems_file, f"problem {key}", problem, ("answer", "choices"))
            prompt = line["conversations"][0]["value"].replace("<image>", "").strip()
            right = _LETTERS[problem["answer"]]
            subject = str(problem.get("subject", ""))
            samples.append(Sample(root / line["image"], with_suffix(prompt, LETTER_ANSWER), (right,), subject, key))
        check_images(cls.title, samples)
        left = len(lines) - len(samples)
        return cls(questions, samples, [f"{left} questions without an image are not asked."] if left else [])
