"""Multiple choice: which letter an answer names, by rules alone; ScienceQA and SEED-Bench. No judge model is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.evaluation.datasets.base import Benchmark, Record, grouped
from visipruner.evaluation.datasets.reading import (
    LETTER_ANSWER,
    check_keys,
    needed,
    read_json,
    read_questions,
    with_suffix,
)
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import normalize

LETTERS = "ABCDEFGH"

_OPTION_LINE = re.compile(r"^([A-H])\. (.*)$", re.MULTILINE)
_OPTIONS_ON_ONE = re.compile(r"^Options: (?=\()(.*)$", re.MULTILINE)
_OPTION_AMONG = re.compile(r"\(([A-H])\) (.*?)(?= \([A-H]\) |$)")
_ALONE = re.compile(r"[(\[]?([A-H])[)\].:,]*", re.IGNORECASE)
_FIRST = re.compile(r"[(\[]?([A-H])[)\].:,]")
_NAMED = re.compile(
    r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?(?: option)?\s*:?\s*[(\[]?([A-H])(?!\w)(?!(?<=A) [a-z])"
)


def options_in(question: str) -> dict[str, str]:
    """The lines "A. text" of a prompt, or of its line "Options: (A) text (B) text" (LLaVA's ScienceQA)."""
    on_one = _OPTIONS_ON_ONE.search(question)
    return dict(_OPTION_LINE.findall(question) if on_one is None else _OPTION_AMONG.findall(on_one[1]))


def letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names, or None.

    In this order: the letter alone ("B", "(b)", "B."); the letter first, with a mark after it ("B. a cat"); the letter
    after "answer", "option" or "choice" ("The answer is B"); an option's whole text. "A cat" names no letter. Letters
    that are not among `options` do not count; without options A to D do.
    """
    allowed = options or dict.fromkeys("ABCD", "")
    text = answer.strip()
    alone = _ALONE.fullmatch(text)
    found = [alone, _FIRST.match(text), *_NAMED.finditer(text)]
    for match in found:
        if match is not None and match[1].upper() in allowed:
            return match[1].upper()
    same = [key for key, value in allowed.items() if normalize(text) and normalize(value) == normalize(text)]
    return same[0] if len(same) == 1 else None


class MultipleChoice(Benchmark):
    """An answer is right when it names the right letter, which is the record's answer."""

    def score(self, record: Record, answer: str) -> float | None:
        if not record["answers"]:
            return None
        return float(letter(answer, options_in(record["question"])) == record["answers"][0])


class ScienceQa(MultipleChoice):
    """ScienceQA (Lu et al. 2022, https://arxiv.org/abs/2209.09513): the test questions that have an image.

    Those without have no visual token; they are left out, so accuracy is the published IMG accuracy.
    """

    name = "scienceqa"
    title = "ScienceQA"
    patterns: ClassVar[tuple[str, ...]] = ("llava_test_CQM-A.json",)
    metric = "accuracy of the letter, questions with an image (IMG)"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        problems_file = needed(cls.title, folder / "problems.json")
        problems = read_json(problems_file)
        test = set(map(str, read_json(needed(cls.title, folder / "pid_splits.json"), "test")["test"]))
        root = needed(cls.title, folder / "images" / "test", folder / "test")
        lines = [line for line in read_json(questions) if str(line["id"]) in test]
        samples = []
        for line in (line for line in lines if "image" in line):
            key = str(line["id"])
            problem = problems.get(key)
            check_keys(problems_file, f"problem {key}", problem, ("answer", "choices"))
            prompt = with_suffix(line["conversations"][0]["value"].replace("<image>", "").strip(), LETTER_ANSWER)
            right, subject = LETTERS[problem["answer"]], str(problem.get("subject", ""))
            samples.append(Sample(root / line["image"], prompt, (right,), subject, key))
        left = len(lines) - len(samples)
        return cls.checked(questions, samples, *([f"{left} questions without an image are not asked."] if left else []))


class SeedBench(MultipleChoice):
    """SEED-Bench (Li et al. 2023, https://arxiv.org/abs/2307.16125): images, and the middle frames of videos.

    Letters are generated, as LLaVA does, not ranked by likelihood. Without the frames only images are asked.
    """

    name = "seedbench"
    title = "SEED-Bench"
    patterns: ClassVar[tuple[str, ...]] = ("llava-seed-bench.jsonl",)
    metric = "accuracy of the letter over all questions, those about images, those about videos, and each question type"
    _FRAMES = "SEED-Bench-video-image"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        path = needed(cls.title, folder / "SEED-Bench.json")
        needed(cls.title, folder / "SEED-Bench-image")
        document = read_json(path, "question_type", "questions")
        types = {number: name for name, number in document["question_type"].items()}
        truths = {str(one["question_id"]): one for one in document["questions"]}
        asked = read_questions(questions, folder)
        samples = []
        has_frames = (folder / cls._FRAMES).is_dir()
        for sample in asked:
            truth = truths.get(sample.id, {})
            check_keys(path, f"question {sample.id}", truth, ("answer", "question_type_id", "data_type"))
            if has_frames or truth["data_type"] != "video":
                kind, key = types[truth["question_type_id"]], f"{truth['data_type']}/{sample.id}"
                samples.append(replace(sample, answers=(truth["answer"],), type=kind, id=key))
        left = len(asked) - len(samples)
        note = f"{left} questions about videos are not asked: there is no folder {cls._FRAMES}."
        return cls.checked(questions, samples, *([note] if left else []))

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        media = grouped(records, lambda record: str(record["id"]).partition("/")[0])
        scores = {"all": self.accuracy(records, method)}
        scores |= {name: self.accuracy(media[name], method) for name in ("image", "video") if name in media}
        return {"scores": scores, "parts": self.accuracy_by_type(records, method)}
