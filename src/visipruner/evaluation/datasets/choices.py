"""Multiple choice: which letter an answer names, by rules alone; no judge model is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping

from visipruner.evaluation.datasets.base import Benchmark, Record
from visipruner.evaluation.scoring import normalize

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
