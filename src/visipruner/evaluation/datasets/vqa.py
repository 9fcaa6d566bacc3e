"""VQA accuracy: the challenge's normalisation of answers, and credit by how many of ten people said the same.

Antol et al. 2015 (https://arxiv.org/abs/1505.00468); the tables are those of the challenge's public evaluation, quirks
included, because published numbers depend on them: commas, question marks and possessive endings are cut first, as
TextVQA's evaluation does, and a full stop goes unless a digit follows it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from visipruner.evaluation.datasets.base import Benchmark, Record

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
