"""From records to one row a method: accuracy and its difference to dense with paired intervals, costs, ratios."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from visipruner.evaluation.folder import Record
from visipruner.evaluation.runner import DENSE
from visipruner.scoring import normalize, right_by_any

_LEVEL, _RESAMPLES, _SEED = 0.95, 4000, 0
# How intervals are made, for whoever repeats them.
INTERVALS = {"level": _LEVEL, "method": "BCa", "resampled": "images", "resamples": _RESAMPLES, "seed": _SEED}
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
    one image are not independent. broken and repaired count answers that score less, or more, than the dense one.
    official is what `scoring` publishes besides, in its own units. `is_significant` says whether the difference's
    interval leaves out 0. Ratios above 1 mean faster than dense, from summed seconds of the same samples in one run.
    selection_share is the part of the method's own code in the seconds to the first token.
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
        difference = interval(changed, images, seed) if changed is not None and name != DENSE else None
        rows.append(
            {
                "method": name,
                "samples": len(records),
                "accuracy": None if right is None else interval(right, images, seed),
                "difference": difference,
                "is_significant": None if difference is None else not difference["low"] <= 0 <= difference["high"],
                "agreement": interval(same.astype(float), images, seed),
                "broken": None if changed is None else int((changed < 0).sum()),
                "repaired": None if changed is None else int((changed > 0).sum()),
                "visual_tokens": float(np.mean([np.mean(one["tokens_per_layer"]) for one in given])),
                "flops_cut": float(np.mean([one["flops_cut"] for one in given])),
                "visual_attention_cut": float(np.mean([one["visual_attention_cut"] for one in given])),
                "prefill_ratio": _ratio(dense, given, "prefill_seconds"),
                "answer_ratio": _ratio(dense, given, "seconds"),
                "selection_share": sum(one["selection_seconds"] for one in given)
                / sum(one["prefill_seconds"] for one in given),
                "by_type": {} if right is None else _by_type(records, right),
                "official": scoring.official(records, name),
            }
        )
    return rows


def interval(values: Numbers, clusters: Sequence[str], seed: int = _SEED) -> dict[str, float]:
    """Mean of `values` with its 95 % BCa interval; whole clusters are resampled."""
    from scipy.stats import bootstrap

    names = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    member = np.array([names[cluster] for cluster in clusters])
    sums = np.bincount(member, values)
    counts = np.bincount(member).astype(float)
    value = float(values.mean())
    if len(names) < 2 or np.ptp(sums / counts) == 0:  # nothing varies, or nothing can be resampled
        return {"value": value, "low": value, "high": value}
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
                batch=max(1, _MOST_NUMBERS // len(names)),
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
            if np.isfinite([found.low, found.high]).all():
                break
    assert found is not None
    return {"value": value, "low": float(found.low), "high": float(found.high)}


def _scores(records: Sequence[Record], name: str, scoring: Scoring) -> Numbers | None:
    """None where the score of any answer is not known."""
    found = [scoring.score(record, record["given"][name]["answer"]) for record in records]
    known = [score for score in found if score is not None]
    return np.array(known) if len(known) == len(found) else None


def _ratio(dense: Sequence[Record], given: Sequence[Record], key: str) -> float:
    return float(sum(one[key] for one in dense) / sum(one[key] for one in given))


def _by_type(records: Sequence[Record], right: Numbers) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for record, good in zip(records, right, strict=True):
        cell = table.setdefault(record["type"], {"right": 0, "total": 0})
        cell["right"] = round(cell["right"] + float(good), 6)
        cell["total"] += 1
    return table


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as people paste it, and a second one of the official scores where there are any.

    A difference whose interval holds 0 is marked "n.s.", which the line below the table spells out.
    """
    lines = [
        "| method | accuracy (95 % CI) | against dense (95 % CI) | same answer | broken / repaired | "
        "visual tokens per layer | FLOPs cut (counted) | prefill | whole answer | selection |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = row["difference"]
        told = "" if difference is None else f"{_points(difference)}{'' if row['is_significant'] else ' n.s.'}"
        changed = "" if row["broken"] is None else f"{row['broken']} / {row['repaired']}"
        lines.append(
            f"| {row['method']} | {_share(row['accuracy'])} | {told} | {100 * row['agreement']['value']:.1f} % "
            f"| {changed} | {row['visual_tokens']:.0f} | {100 * row['flops_cut']:.1f} % "
            f"| {row['prefill_ratio']:.2f}x | {row['answer_ratio']:.2f}x | {100 * row['selection_share']:.1f} % |"
        )
    if any(row["is_significant"] is False for row in rows):
        lines += ["", "n.s.: no significant difference; the interval of the paired difference to dense holds 0."]
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


def _share(found: dict[str, float] | None) -> str:
    if found is None:
        return "not known"
    return f"{100 * found['value']:.1f} % ({100 * found['low']:.0f}-{100 * found['high']:.0f})"


def _points(found: dict[str, float]) -> str:
    return f"{100 * found['value']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
