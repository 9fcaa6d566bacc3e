"""From records to one row a method: accuracy, its difference to dense with paired intervals, costs; and to tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from visipruner.errors import ConfigError
from visipruner.evaluation.certainty import LEVEL, SEED, Numbers, holm, interval, per_image, sign_flip_p
from visipruner.evaluation.folder import Record
from visipruner.evaluation.runner import DENSE
from visipruner.evaluation.scoring import normalize, right_by_any
from visipruner.tables import Table


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
    """Every other method of `records` compared with the method `name`: method, difference, p, and p_holm over these, by
    exact match. Raises ConfigError where there is no such method, or an answer is not known."""
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


_LEAST_TOLD = 0.0001  # a smaller p is not told apart
Row = Mapping[str, Any]


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Both tables as people paste them. What p and "n.s." mean stands below the first."""
    return "\n\n".join(table.markdown() for table in as_tables(rows))


def as_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Of rows as `summarize` makes them."""
    notes = []
    if tested := sum(row["p"] is not None for row in rows):
        notes.append(
            "p: two-sided sign-flip test of the paired difference over images; p, Holm: adjusted for the rows tested "
            f"here, {tested}. n.s.: no significant difference, p, Holm is above {LEVEL}. Each interval is of its row "
            "alone, and not exact where few answers change; none is given where images do not vary."
        )
    columns = dict(_COLUMNS)
    if any(row.get("critical_left") for row in rows):
        columns |= _CRITICAL
        notes.append(
            "critical tokens: those that hold the answer, in the mean over the questions of which this is known."
        )
    tables = [Table.of(columns, rows, notes)]
    if names := list(rows[0]["official"].get("scores", {})):
        scores = [[row["method"], *(f"{row['official']['scores'][name]:.2f}" for name in names)] for row in rows]
        tables.append(Table(["official score", *names], scores))
    return tables


def _share(found: Row | None) -> str:
    return "not known" if found is None else f"{100 * found['value']:.1f} % ({_bounds(found, '.0f', '-')})"


def _points(found: Row | None, is_significant: bool | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['value']:+.1f} ({_bounds(found, '+.1f', ' to ')}){'' if is_significant else ' n.s.'}"


def _bounds(found: Row, form: str, between: str) -> str:
    if found["low"] is None:
        return "no interval"
    return between.join(format(100 * found[end], form) for end in ("low", "high"))


def _chance(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.3g}" if p >= _LEAST_TOLD else f"<{_LEAST_TOLD:g}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: str(row["method"]),
    "accuracy (95 % CI)": lambda row: _share(row["accuracy"]),
    f"against dense (95 % CI; n.s.: p, Holm > {LEVEL})": lambda row: _points(row["difference"], row["is_significant"]),
    "p": lambda row: _chance(row["p"]),
    "p, Holm": lambda row: _chance(row["p_holm"]),
    "same answer": lambda row: f"{100 * row['agreement']['value']:.1f} %",
    "broken / repaired": lambda row: "" if row["broken"] is None else f"{row['broken']} / {row['repaired']}",
    "visual tokens per layer": lambda row: f"{row['visual_tokens']:.0f}",
    "FLOPs cut (counted)": lambda row: f"{100 * row['flops_cut']:.1f} %",
    "prefill": lambda row: f"{row['prefill_ratio']:.2f}x",
    "whole answer": lambda row: f"{row['answer_ratio']:.2f}x",
    "selection": lambda row: "-" if row["selection_share"] is None else f"{100 * row['selection_share']:.1f} %",
}


def _critical(row: Row) -> str:
    shares = row.get("critical_left")
    if not shares:
        return ""
    return " / ".join(f"{100 * shares[len(shares) * quarter // 4]:.0f}" for quarter in (1, 2, 3)) + " %"


_CRITICAL: dict[str, Callable[[Row], str]] = {"critical tokens left after 1/4, 1/2, 3/4 of the layers": _critical}
