"""From records to one row a method: accuracy and its difference to dense with paired intervals, costs, ratios."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from visipruner.evaluation.folder import Record
from visipruner.evaluation.runner import DENSE
from visipruner.evaluation.scoring import normalize, right_by_any
from visipruner.evaluation.significance import LEVEL, holm, sign_flip_p

_LEVEL, _RESAMPLES, _SEED = 0.95, 4000, 0
# How intervals are made, for whoever repeats them.
INTERVALS = {"level": _LEVEL, "method": "BCa", "resampled": "images", "resamples": _RESAMPLES, "seed": _SEED}
_LEAST_TOLD = 0.0001  # a smaller p is not told apart
_MOST_NUMBERS = 2**24  # in memory at once; resampling tens of thousands of images would need gigabytes

Numbers = npt.NDArray[np.float64]


class Scoring(Protocol):
    """How answers are scored; every `benchmarks.Benchmark` is one."""

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


def summarize(records: Sequence[Record], seed: int = _SEED, scoring: Scoring = _EXACT_MATCH) -> list[dict[str, Any]]:
    """One row a method, the dense model first; fractions, not per cent.

    accuracy (the mean score; null where an answer is not known), difference (to dense, paired) and agreement are
    `{"value", "low", "high"}` with 95 % BCa bootstrap intervals over images (Efron 1987), because questions about
    one image are not independent; low and high are null where images do not vary. p is the difference's by a sign-flip
    test over images, p_holm that p adjusted for all methods of `records`; `is_significant` says whether p_holm is at
    most 0.05. broken and repaired count answers that score less, or more, than the dense one.
    official is what `scoring` publishes besides, in its own units. Ratios above 1 mean faster than dense, from summed
    seconds of the same samples in one run. selection_share is the part of the method's own code in the seconds to the
    first token, None where it was not timed.
    """
    images = [record["image"] for record in records]
    names = list(records[0]["given"])
    dense = [record["given"][DENSE] for record in records]
    dense_right = _scores(records, DENSE, scoring)
    rows = []
    for name in names:
        given = [record["given"][name] for record in records]
        right = _scores(records, name, scoring)
        same = np.array([normalize(a["answer"]) == normalize(b["answer"]) for a, b in zip(given, dense, strict=True)])
        changed = None if right is None or dense_right is None else right - dense_right
        compared = None if name == DENSE else changed
        rows.append(
            {
                "method": name,
                "samples": len(records),
                "accuracy": None if right is None else interval(right, images, seed),
                "difference": None if compared is None else interval(compared, images, seed),
                "p": None if compared is None else sign_flip_p(_per_image(compared, images)[0], seed),
                "p_holm": None,  # these two are known when every p is
                "is_significant": None,
                "agreement": interval(same.astype(float), images, seed),
                "broken": None if changed is None else int((changed < 0).sum()),
                "repaired": None if changed is None else int((changed > 0).sum()),
                "visual_tokens": float(np.mean([np.mean(one["tokens_per_layer"]) for one in given])),
                "flops_cut": float(np.mean([one["flops_cut"] for one in given])),
                "visual_attention_cut": float(np.mean([one["visual_attention_cut"] for one in given])),
                "prefill_ratio": _ratio(dense, given, "prefill_seconds"),
                "answer_ratio": _ratio(dense, given, "seconds"),
                "selection_share": _selection_share(given),
                "by_type": {} if right is None else _by_type(records, right),
                "official": scoring.official(records, name),
            }
        )
    adjusted = iter(holm([row["p"] for row in rows if row["p"] is not None]))
    for row in rows:
        row["p_holm"] = None if row["p"] is None else next(adjusted)
        row["is_significant"] = None if row["p"] is None else row["p_holm"] <= LEVEL
    return rows


def interval(values: Numbers, clusters: Sequence[str], seed: int = _SEED) -> dict[str, Any]:
    """Mean of `values` with its 95 % BCa interval; whole clusters are resampled.

    low and high are None for one cluster, or where all have the same mean: resampling then tells nothing.
    """
    from scipy.stats import bootstrap

    sums, counts = _per_image(values, clusters)
    value = float(values.mean())
    if np.ptp(sums / counts) == 0:
        return {"value": value, "low": None, "high": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a degenerate BCa is answered below
        found = None
        for method in ("BCa", "percentile"):
            found = bootstrap(
                (sums, counts),
                lambda total, number, axis=-1: total.sum(axis) / number.sum(axis),
                paired=True,
                vectorized=True,
                n_resamples=_RESAMPLES,
                confidence_level=_LEVEL,
                batch=max(1, _MOST_NUMBERS // len(sums)),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
            if np.isfinite([found.low, found.high]).all():
                break
    assert found is not None
    return {"value": value, "low": float(found.low), "high": float(found.high)}


def _per_image(values: Numbers, images: Sequence[str]) -> tuple[Numbers, Numbers]:
    """Sums of `values` and how many there are, both `[images]`."""
    names = {image: number for number, image in enumerate(dict.fromkeys(images))}
    member = np.array([names[image] for image in images])
    return np.bincount(member, values).astype(float), np.bincount(member).astype(float)


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


def _by_type(records: Sequence[Record], right: Numbers) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for record, good in zip(records, right, strict=True):
        cell = table.setdefault(record["type"], {"right": 0, "total": 0})
        cell["right"] = round(cell["right"] + float(good), 6)
        cell["total"] += 1
    return table


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as people paste it, and a second one of the official scores where there are any.

    What p and "n.s." mean stands below the table.
    """
    lines = [
        f"| method | accuracy (95 % CI) | against dense (95 % CI; n.s.: p, Holm > {LEVEL}) | p | p, Holm | same answer "
        "| broken / repaired | visual tokens per layer | FLOPs cut (counted) | prefill | whole answer | selection |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = row["difference"]
        told = "" if difference is None else f"{_points(difference)}{'' if row['is_significant'] else ' n.s.'}"
        chances = ["" if difference is None else _chance(row[key]) for key in ("p", "p_holm")]
        changed = "" if row["broken"] is None else f"{row['broken']} / {row['repaired']}"
        selection = "-" if row["selection_share"] is None else f"{100 * row['selection_share']:.1f} %"
        lines.append(
            f"| {row['method']} | {_share(row['accuracy'])} | {told} | {' | '.join(chances)} "
            f"| {100 * row['agreement']['value']:.1f} % "
            f"| {changed} | {row['visual_tokens']:.0f} | {100 * row['flops_cut']:.1f} % "
            f"| {row['prefill_ratio']:.2f}x | {row['answer_ratio']:.2f}x | {selection} |"
        )
    if tested := sum(row["p"] is not None for row in rows):
        lines += [
            "",
            "p: two-sided sign-flip test of the paired difference over images; p, Holm: adjusted for the rows tested "
            f"here, {tested}. n.s.: no significant difference, p, Holm is above {LEVEL}. Each interval is of its row "
            "alone, and not exact where few answers change; none is given where images do not vary.",
        ]
    return "\n".join(lines + _official_table(rows))


def _official_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["official"].get("scores", {}))
    if not names:
        return []
    lines = ["", f"| official score | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        scores = row["official"]["scores"]
        lines.append(f"| {row['method']} | {' | '.join(f'{scores[name]:.2f}' for name in names)} |")
    return lines


def _share(found: Mapping[str, Any] | None) -> str:
    return "not known" if found is None else f"{100 * found['value']:.1f} % ({_bounds(found, '.0f', '-')})"


def _points(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:+.1f} ({_bounds(found, '+.1f', ' to ')})"


def _bounds(found: Mapping[str, Any], form: str, between: str) -> str:
    if found["low"] is None:
        return "no interval"
    return between.join(format(100 * found[end], form) for end in ("low", "high"))


def _chance(p: float) -> str:
    return f"{p:.3g}" if p >= _LEAST_TOLD else f"<{_LEAST_TOLD:g}"
