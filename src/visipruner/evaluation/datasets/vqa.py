"""Benchmarks scored by VQA accuracy: VQA v2, VizWiz and TextVQA.

The challenge's normalisation of answers, and credit by how many of ten people said the same.

Antol et al. 2015 (https://arxiv.org/abs/1505.00468); the tables are those of the challenge's public evaluation, quirks
included, because published numbers depend on them: commas, question marks and possessive endings are cut first, as
TextVQA's evaluation does, and a full stop goes unless a digit follows it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark, Record, answer_of, write_submission
from visipruner.evaluation.datasets.reading import (
    SHORT_ANSWER,
    check_keys,
    needed,
    read_json,
    read_jsonl,
    read_questions,
    with_suffix,
)
from visipruner.evaluation.samples import Sample

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(["zero", *"one two three four five six seven eight nine ten".split()])  # noqa: SIM905
} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
    not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _restored() -> dict[str, str]:
    """From every spelling that lacks one apostrophe to the right one."""
    table = {"somebody'd": "somebodyd"}  # the challenge's table has this one the wrong way round
    for word in _CONTRACTIONS.split():
        for at, sign in enumerate(word):
            if sign == "'":
                table[word[:at] + word[at + 1 :]] = word
    return table


_RESTORED = _restored()


def normalize_answer(answer: str) -> str:
    """As the challenge compares answers: lower case, no punctuation, no articles, numbers as digits, apostrophes."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    return _words(text)


def normalize_reference(answer: str) -> str:
    """As the VQA v2 evaluation itself has it: without the first cuts of `normalize_answer`."""
    return _words(without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))


def without_punctuation(text: str) -> str:
    """A sign goes where a space is beside it or the text has a number with commas, else it becomes a space."""
    out = text
    has_number = _COMMA_IN_NUMBER.search(text) is not None
    for sign in _PUNCTUATION:
        goes = has_number or f"{sign} " in text or f" {sign}" in text
        out = out.replace(sign, "" if goes else " ")
    return _FULL_STOP.sub("", out)


def _words(text: str) -> str:
    numbered = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in numbered if word not in _ARTICLES)


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(1, n / 3), n of the others saying the same, averaged over leaving out each of `references` in turn.

    All are compared as they are; normalise them before.
    """
    same = sum(reference == answer for reference in references)
    total = len(references)
    return (same * min(1.0, (same - 1) / 3) + (total - same) * min(1.0, same / 3)) / total


class SoftVqa(Benchmark):
    """Scored against what ten people answered; the record's answers are all ten, repeated ones repeated."""

    metric = "VQA accuracy against ten people's answers, normalised as the challenge does"

    def score(self, record: Record, answer: str) -> float | None:
        if not record["answers"]:
            return None
        return soft_accuracy(normalize_answer(answer), [normalize_answer(one) for one in record["answers"]])


class VqaV2(SoftVqa):
    """VQA v2 (Goyal et al. 2017, https://arxiv.org/abs/1612.00837): with the official validation files the answers are
    known; with LLaVA's question files (test-dev) they are the server's."""

    name = "vqav2"
    title = "VQAv2"
    validation = "v2_OpenEnded_mscoco_val2014_questions.json"
    all_test = "llava_vqav2_mscoco_test2015.jsonl"
    patterns: ClassVar[tuple[str, ...]] = ("llava_vqav2_mscoco_test-dev2015.jsonl", "llava_vqav2_*.jsonl", validation)

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.name.lower() == cls.validation.lower():
            return cls._validation(questions)
        samples = read_questions(questions, needed(cls.title, questions.parent / "test2015"))
        is_whole = (questions.parent / cls.all_test).exists()
        note = f"Without {cls.all_test} the submission holds only the questions asked; the server wants all."
        return cls.checked(questions, samples, *([] if is_whole else [note]), server="EvalAI's VQA challenge")

    @classmethod
    def _validation(cls, questions: Path) -> Self:
        root = needed(cls.title, questions.parent / "val2014")
        path = needed(cls.title, questions.parent / "v2_mscoco_val2014_annotations.json")
        known = {one["question_id"]: one for one in read_json(path, "annotations")["annotations"]}
        samples = []
        for one in read_json(questions, "questions")["questions"]:
            truth = known.get(one["question_id"], {})
            check_keys(path, f"question {one['question_id']}", truth, ("answers", "answer_type"))
            image = root / f"COCO_val2014_{one['image_id']:012d}.jpg"
            answers = tuple(given["answer"] for given in truth["answers"])
            prompt = with_suffix(one["question"], SHORT_ANSWER)
            samples.append(Sample(image, prompt, answers, truth["answer_type"], str(one["question_id"])))
        return cls.checked(questions, samples)

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
        whole = self.questions.parent / self.all_test
        is_whole = whole.exists()
        asked = [line["question_id"] for line in read_jsonl(whole if is_whole else self.questions, "question_id")]
        wanted = [one for one in asked if is_whole or str(one) in given]
        return write_submission(stem, [{"question_id": one, "answer": given.get(str(one), "")} for one in wanted])


class VizWiz(SoftVqa):
    """VizWiz-VQA (Gurari et al. 2018, https://arxiv.org/abs/1802.08218): test answers are not public; the official
    val.json has ten answers to each question."""

    name = "vizwiz"
    title = "VizWiz"
    patterns: ClassVar[tuple[str, ...]] = ("llava_test.jsonl", "val.json")
    _UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.suffix != ".json":
            samples = read_questions(questions, needed(cls.title, questions.parent / "test"))
            return cls.checked(questions, samples, server="EvalAI's VizWiz challenge")
        root = needed(cls.title, questions.parent / "val")
        samples = []
        for number, one in enumerate(read_json(questions)):
            prompt = with_suffix(f"{one['question']}\n{cls._UNANSWERABLE}", SHORT_ANSWER)
            answers = tuple(given["answer"] for given in one["answers"])
            samples.append(Sample(root / one["image"], prompt, answers, one.get("answer_type", ""), str(number)))
        return cls.checked(questions, samples)

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path | None:
        if not self.server:
            return None
        said = ((record["image"], normalize_answer(answer_of(record, method))) for record in records)
        return write_submission(stem, [{"image": Path(image).name, "answer": answer} for image, answer in said])


class TextVqa(SoftVqa):
    """TextVQA (Singh et al. 2019, https://arxiv.org/abs/1904.08920): validation 0.5.1, with LLaVA's OCR hints.

    The prompt's first line that is no hint is the question; it and the image's id find the ten answers.
    """

    name = "textvqa"
    title = "TextVQA"
    patterns: ClassVar[tuple[str, ...]] = ("llava_textvqa_val_v051_ocr.jsonl", "llava_textvqa_*.jsonl")

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        folder = questions.parent
        root = needed(cls.title, folder / "train_images", folder / "train_val_images" / "train_images")
        path = needed(cls.title, folder / "TextVQA_0.5.1_val.json")
        known = {(str(one["image_id"]), one["question"].lower()): one for one in read_json(path, "data")["data"]}
        samples = []
        seen: Counter[str] = Counter()
        for sample in read_questions(questions, root):
            image = sample.id  # an image may be asked several things
            lines = [line for line in sample.question.split("\n") if not line.startswith("Reference OCR token:")]
            found = known.get((image, lines[0].lower()))
            if found is None:
                raise ConfigError(f"{path} has no answers to {lines[0].lower()!r} about {image}; get version 0.5.1.")
            seen[image] += 1
            samples.append(replace(sample, answers=tuple(map(str, found["answers"])), id=f"{image}/{seen[image]}"))
        return cls.checked(questions, samples)
