"""From records to curves with intervals: what the report draws and `analysis.json` holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Array
from visipruner.analysis.evidence import Budget
from visipruner.analysis.gaze import overlap
from visipruner.analysis.intervals import Bootstrap
from visipruner.analysis.records import Records
from visipruner.analysis.result import Result

_SWEEPS = {
    "sweeps": ("sweep_shallow_to_deep", "discard", "sweep_window"),
    "control": ("swap_window", "swap_all"),
}
_MEASURES = ("kl", "agreement", "accuracy")


def summary(records: Records) -> dict[str, Any]:
    """Every part as JSON: curves (`mean`, `low`, `high`) over layers or conditions."""
    found: dict[str, Any] = {"dense": _dense(records)}
    for part, names in _SWEEPS.items():
        if part in records.parts:
            found[part] = {name: _by_type(records, records.result(part, name), "layer") for name in names}
    for part, name, dim in (
        ("shallow", "shallow", "condition"),
        ("skip", "skip", "layer"),
        ("freeze", "freeze", "layer"),
        ("freeze_blocks", "freeze_blocks", "layer"),
        ("cache", "cache", "window"),
    ):
        if part in records.parts:
            found[part] = _measures(records, records.result(part, name), dim)
    if "attention" in records.parts:
        found["attention"] = _attention(records)
    if "influence" in records.parts:
        found["influence"] = _influence(records)
    if "scores" in records.parts:
        found["scores"] = _scores(records, "scores", records.plan["scored"])
        found["budgets"] = _scores(records, "budgets", records.plan["budgets"])
    if "lens" in records.parts:
        found["lens"] = _lens(records)
    return found


def _dense(records: Records) -> dict[str, Any]:
    right = records.dense_right
    known = not np.isnan(right).any()
    return {
        "samples": len(records.records),
        "images": len(set(records.images)),
        "accuracy": _curve(records.bootstrap, right[:, None]) if known else None,
        "by_type": {
            name: {"samples": int(members.sum()), "accuracy": float(right[members].mean()) if known else None}
            for name, members in _members(records).items()
        },
    }


def _members(records: Records) -> dict[str, Array]:
    return {name: np.array([kind == name for kind in records.types]) for name in sorted(set(records.types))}


def _measures(records: Records, result: Result, dim: str, members: Array | None = None) -> dict[str, Any]:
    chosen = np.ones(len(records.records), bool) if members is None else members
    bootstrap = records.bootstrap
    if members is not None:
        bootstrap = Bootstrap(
            [image for image, there in zip(records.images, members, strict=True) if there], records.seed
        )
    values = {
        "kl": result["kl"].values,
        "agreement": result["agrees"].values,
        "accuracy": result["right"].values,
    }
    return {
        dim: result["kl"].labels(dim),
        **{name: _curve(bootstrap, values[name][chosen]) for name in _MEASURES},
    }


def _by_type(records: Records, result: Result, dim: str) -> dict[str, Any]:
    kinds = {name: _measures(records, result, dim, members) for name, members in _members(records).items()}
    return {**_measures(records, result, dim), "by_type": kinds if len(kinds) > 1 else {}}


def _attention(records: Records) -> dict[str, Any]:
    result = records.result("attention", "attention")
    tops = result["top"].values
    value, attended = result["value_l1"].values, result["map"].values
    best = np.argsort(-np.nan_to_num(attended), axis=-1)[..., :10]
    return {
        "mass": _curve(records.bootstrap, result["mass"].values),
        "system_mass": _curve(records.bootstrap, result["system_mass"].values),
        "l1_top_visual": _curve(records.bootstrap, np.nanmean(np.take_along_axis(value, best, -1), -1)),
        "l1_visual": _curve(records.bootstrap, np.nanmean(value, -1)),
        "l1_text_sink": _curve(records.bootstrap, result["sink_l1"].values),
        "l1_text": _curve(records.bootstrap, result["text_l1"].values),
        "overlap_of_questions": _overlap_of_questions(records, tops),
        "overlap_of_layers": _curve(records.bootstrap, _overlap_of_layers(tops)),
    }


def _overlap_of_questions(records: Records, tops: Array) -> dict[str, Any]:
    """Top attended tokens that two questions about one image share, against two images."""
    same, other = [], []
    for one in range(len(records.records)):
        for two in range(one + 1, len(records.records)):
            shared = [overlap(a, b) for a, b in zip(tops[one].tolist(), tops[two].tolist(), strict=True)]
            if records.images[one] == records.images[two]:
                same.append((records.images[one], shared))
            elif two == one + 1:
                other.append(shared)
    images, shares = [image for image, _ in same], np.array([shared for _, shared in same])
    return {
        "pairs": len(same),
        "same_image": _curve(Bootstrap(images), shares) if same else None,
        "other_image": np.mean(other, axis=0).round(4).tolist() if other else None,
    }


def _influence(records: Records) -> dict[str, Any]:
    result = records.result("influence", "influence")
    distance = np.nanmax(result["distance"].values, axis=-1)
    return {
        "would_filter": _curve(records.bootstrap, result["would_filter"].values),
        "stability": _curve(records.bootstrap, result["stability"].values),
        "distance": {
            name: np.quantile(distance, share, axis=0).round(6).tolist()
            for name, share in (("low", 0.1), ("median", 0.5), ("high", 0.9))
        },
    }


def _scores(records: Records, name: str, budgets: Sequence[Budget]) -> dict[str, Any]:
    result = records.result("scores", name)
    array = result["kl"]
    found: dict[str, Any] = {
        "score": array.labels("score"),
        "budget": list(budgets),
        "layer": array.labels("layer"),
    }
    for label, key in (("kl", "kl"), ("agreement", "agrees"), ("accuracy", "right"), ("overlap", "overlap")):
        found[label] = _curve(records.bootstrap, result[key].values)
    return found


def _lens(records: Records) -> dict[str, Any]:
    leads = [record["parts"]["lens"]["leading_layer"] for record in records.records]
    return {
        "answer": _curve(records.bootstrap, records.result("lens", "lens")["answer"].values),
        "leading_layer": dict(sorted(Counter(leads).items())),
        "median_leading_layer": float(np.median(leads)),
    }


def _overlap_of_layers(tops: Array) -> Array:
    """`[S, L - 1]`: top tokens that a layer shares with the next."""
    pairs = zip(tops[:, :-1].reshape(-1, tops.shape[-1]), tops[:, 1:].reshape(-1, tops.shape[-1]), strict=True)
    shared = [overlap(one.tolist(), other.tolist()) for one, other in pairs]
    return np.array(shared).reshape(tops.shape[0], -1)


def _curve(bootstrap: Bootstrap, values: Array) -> dict[str, Any]:
    """Mean, low and high of `values` `[samples, ...]` in JSON numbers, null where not known; how many images."""
    found: dict[str, Any] = {"images": bootstrap.images}
    for name, numbers in bootstrap.curve(values).items():
        rounded = np.round(numbers, 5).astype(object)
        rounded[np.isnan(numbers)] = None
        found[name] = rounded.tolist()
    return found
