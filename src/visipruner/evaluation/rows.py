"""From records to one row a method: accuracy and its difference to dense with paired intervals, costs, ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from visipruner.errors import ConfigError
from visipruner.evaluation.certainty import LEVEL, SEED, Numbers, holm, interval, per_image, sign_flip_p
from visipruner.evaluation.folder import Record
from visipruner.evaluation.runner import DENSE
from visipruner.evaluation.scoring import normalize, right_by_any


class Scoring(Protocol):
    """How answers are scored; every `datasets.Benchmark` is one."""

    def score(self, record: Record, answer: str) -> float | None:
        """Of one answer, between 0 and 1; None where the right answer is not known."""

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        """What else is published of one method's answers: `{"scores": {name: value}, "parts": ...}`, or nothing."""


class ExactMatch:
    """Normalised exact match with any of the accepted answers."""

    def score(self, record: Record, answer: str) -> float | None:
        return right_by_any(answer, record["answers"])

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        return {}


_EXACT_MATCH = ExactMatch()


def summarize(records: Sequence[Record], seed: int = SEED, scoring: Scoring = _EXACT_MATCH) -> list[dict[str, Any]]:
    """One row a method, the dense model first; fractions, not per cent.

    accuracy (the mean score; null where an answer is not known), difference (to dense, paired) and agreement are
    `{"value", "low", "high"}` with 95 % BCa bootstrap intervals over images (Efron 1987), because questions about
    one image are not independent; low and high are null where images do not vary. p is the difference's by a sign-flip
    test over images, p_holm that p adjusted for all methods of `records`; `is_significant` says whether p_holm is at
    most 0.05. broken and repaired count answers that score less, or more, than the dense one.
    official is what `scoring` publishes besides, in its own units. Ratios above 1 mean faster than dense, from summed
    seconds of the same samples in one run. critical_left is by layer the mean share of the tokens that hold the answer,
    None where no sample says which these are. selection_share is the part of the method's own code in the seconds to
    the first token, None where it was not timed.
    """
    dense = _scores(records, DENSE, scoring)
    rows = [_row(records, name, dense, seed, scoring) for name in records[0]["given"]]
    adjusted = iter(holm([row["p"] for row in rows if row["p"] is not None]))
    for row in rows:
        row["p_holm"] = None if row["p"] is None else next(adjusted)
        row["is_significant"] = None if row["p"] is None else row["p_holm"] <= LEVEL
    return rows


def against(records: Sequence[Record], name: str, seed: int = SEED) -> list[dict[str, Any]]:
    """Every other method of `records` compared with the method `name` as `summarize` compares them with dense: method,
    difference, p, and p_holm over these. By exact match. Raises ConfigError where there is no such method, or an answer
    is not known."""
    methods = list(records[0]["given"])
    if name not in methods:
        raise ConfigError(f"There is no {name!r} among {', '.join(methods)}.")
    images = [record["image"] for record in records]
    control, rows = _scores(records, name, _EXACT_MATCH), []
    for each in methods:
        right = _scores(records, each, _EXACT_MATCH)
        if right is None or control is None:
            raise ConfigError("The right answers are not known, so no two methods can be compared.")
        if each != name:
            rows.append({"method": each, **_compared(right - control, images, seed)})
    return [{**row, "p_holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def _compared(changed: Numbers, images: Sequence[str], seed: int) -> dict[str, Any]:
    """What is said of paired differences of scores, one a record."""
    return {"difference": interval(changed, images, seed), "p": sign_flip_p(per_image(changed, images)[0], seed)}


def _row(
    records: Sequence[Record], name: str, dense_right: Numbers | None, seed: int, scoring: Scoring
) -> dict[str, Any]:
    images = [record["image"] for record in records]
    dense = [record["given"][DENSE] for record in records]
    given = [record["given"][name] for record in records]
    right = _scores(records, name, scoring)
    same = np.array([normalize(a["answer"]) == normalize(b["answer"]) for a, b in zip(given, dense, strict=True)])
    changed = None if right is None or dense_right is None else right - dense_right
    compared = None if name == DENSE else changed
    return {
        "method": name,
        "samples": len(records),
        "accuracy": None if right is None else interval(right, images, seed),
        **({"difference": None, "p": None} if compared is None else _compared(compared, images, seed)),
        "p_holm": None,  # these two are known when every p is
        "is_significant": None,
        "agreement": interval(same.astype(float), images, seed),
        "broken": None if changed is None else int((changed < 0).sum()),
        "repaired": None if changed is None else int((changed > 0).sum()),
        "visual_tokens": float(np.mean([np.mean(one["tokens_per_layer"]) for one in given])),
        "flops_cut": float(np.mean([one["flops_cut"] for one in given])),
        "visual_attention_cut": float(np.mean([one["visual_attention_cut"] for one in given])),
        "critical_left": _critical_left(given),
        "prefill_ratio": _ratio(dense, given, "prefill_seconds"),
        "answer_ratio": _ratio(dense, given, "seconds"),
        "selection_share": _selection_share(given),
        "by_type": {} if right is None else _by_type(records, right),
        "official": scoring.official(records, name),
    }


def _scores(records: Sequence[Record], name: str, scoring: Scoring) -> Numbers | None:
    """None where the score of any answer is not known."""
    found = [scoring.score(record, record["given"][name]["answer"]) for record in records]
    known = [score for score in found if score is not None]
    return np.array(known) if len(known) == len(found) else None


def _ratio(dense: Sequence[Record], given: Sequence[Record], key: str) -> float:
    return float(sum(one[key] for one in dense) / sum(one[key] for one in given))


def _selection_share(given: Sequence[Record]) -> float | None:
    spent = [one["selection_seconds"] for one in given]
    return None if None in spent else float(sum(spent) / sum(one["prefill_seconds"] for one in given))


def _critical_left(given: Sequence[Record]) -> list[float] | None:
    known = [one["critical_left"] for one in given if "critical_left" in one]
    return [float(share) for share in np.mean(known, axis=0)] if known else None


def _by_type(records: Sequence[Record], right: Numbers) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for record, good in zip(records, right, strict=True):
        cell = table.setdefault(record["type"], {"right": 0, "total": 0})
        cell["right"] = round(cell["right"] + float(good), 6)
        cell["total"] += 1
    return table
