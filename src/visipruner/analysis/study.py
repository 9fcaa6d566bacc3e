"""From many samples' records to curves, evidence, stages and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median_low
from typing import Any

import numpy as np

from visipruner.analysis.boundaries import TOLERANCES, Evidence, Metric
from visipruner.analysis.gaze import overlap
from visipruner.analysis.looks import Scored
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, SCORED, TRIED, Record
from visipruner.analysis.result import Array, Bootstrap, Result, plain
from visipruner.analysis.stages import Stages, stages_from
from visipruner.errors import ConfigError

_BY_TYPE = {
    "sweeps": ("sweep_shallow_to_deep", "discard", "sweep_window"),
    "control": ("swap_window", "swap_all"),
}
_MEASURES = {"kl": "kl", "agreement": "agrees", "accuracy": "right"}


class Study:
    """All records of an analysis, S samples, and what follows from them.

    Args:
        records: at least one, all from one model. Parts that not all of them have, as after an interrupted run, are
            left out of `records` here.
    """

    def __init__(self, records: Sequence[Record], seed: int = 0) -> None:
        if not records:
            raise ConfigError("There is nothing to summarise: no sample was measured.")
        self.parts = [part for part in records[0]["parts"] if all(part in record["parts"] for record in records)]
        self.records = [_limited(record, self.parts) for record in records]
        self.images = [record["image"] for record in records]
        self.types = [record["type"] for record in records]
        self.seed = seed
        self.bootstrap = Bootstrap(self.images, seed)

    @property
    def dense_right(self) -> Array:
        """`[S]`: 1 where the dense answer is right, NaN where no right answer is known."""
        return np.array([record["is_right"] for record in self.records], float)

    @property
    def has_answers(self) -> bool:
        """Whether every right answer is known."""
        return not np.isnan(self.dense_right).any()

    @property
    def plan(self) -> dict[str, Any]:
        """What the parts tried, see `Plan`; where images differ in their tokens, and so in these numbers of them,
        `scored` and `budgets` are shares of the image's tokens."""
        plans = [record["plan"] for record in self.records]
        if len({(*plan["scored"], *plan["budgets"]) for plan in plans}) == 1:
            return dict(plans[0])
        return {**plans[0], "scored": [1 / part for part in SCORED], "budgets": [1 / part for part in TRIED]}

    @property
    def visual_tokens(self) -> int:
        """Of the median image (the lower of two in the middle)."""
        return int(median_low(record["visual_tokens"] for record in self.records))

    def result(self, part: str, name: str) -> Result:
        """One result of all samples, stacked along "sample"."""
        return Result.stack([Result.from_dict(record["parts"][part][name]) for record in self.records])

    def loss(self, result: Result, metric: Metric = "kl") -> Array:
        """`[S, ...]`: what a variant loses against the dense model, in the metric's unit.

        Raises ConfigError for accuracy without known answers.
        """
        if metric not in TOLERANCES:
            raise ConfigError(f"metric must be one of {', '.join(TOLERANCES)}, got {metric!r}.")
        if metric == "accuracy" and not self.has_answers:
            raise ConfigError("Not every right answer is known; take the metric kl or agreement.")
        values = result[_MEASURES[metric]].values
        if metric == "kl":
            return values
        dense = self.dense_right if metric == "accuracy" else np.ones(len(values))
        return np.asarray(dense.reshape(-1, *[1] * (values.ndim - 1)) - values)

    def evidence(self, metric: Metric = "kl") -> Evidence:
        """What stages are read off, in the unit of a loss: KL sees a change long before an answer flips.

        Raises ConfigError where the parts it takes were not measured.
        """
        missing = [part for part in NEEDED_FOR_STAGES if part not in self.parts]
        if missing:
            raise ConfigError(f"Stages need the parts {', '.join(missing)} too.")
        below, discard, window, swapped_window, swapped = (
            self.loss(self.result(part, name), metric) for part, names in _BY_TYPE.items() for name in names
        )
        budgets, influence = self.result("scores", "budgets"), self.result("influence", "influence")
        return Evidence(
            below=below,
            discard=discard,
            window=window,
            swapped_window=swapped_window,
            swapped=swapped[:, 0],
            window_size=self.records[0]["plan"]["window"],
            kept=self.loss(budgets, metric)[:, 0],
            budgets=list(self.plan["budgets"]),
            layers=budgets["kl"].labels("layer"),
            distance=np.nanmax(influence["distance"].values, axis=-1),
            relative_norm=influence["relative"].values,
            images=self.images,
            types=self.types,
            metric=metric,
        )

    def stages(self, metric: Metric = "kl", tolerance: float | None = None) -> Stages:
        """Stages by a loss, see `stages_from`. Raises ConfigError as `evidence` does."""
        return stages_from(self.evidence(metric), tolerance, self.seed)

    def scored(self, metric: Metric = "kl") -> Scored:
        result = self.result("scores", "scores")
        means = np.nanmean(self.loss(result, metric), axis=0)
        whole = self.visual_tokens
        shares = [budget if isinstance(budget, float) else budget / whole for budget in self.plan["scored"]]
        return Scored(dict(zip(result["kl"].labels("score"), means, strict=True)), shares, result["kl"].labels("layer"))

    def summary(self) -> dict[str, Any]:
        """Every part as JSON: curves (`mean`, `low`, `high`) over layers or conditions."""
        found: dict[str, Any] = {"dense": self._dense()}
        for part, names in _BY_TYPE.items():
            if part in self.parts:
                found[part] = {name: self._by_type(self.result(part, name)) for name in names}
        for part in ("shallow", "skip", "freeze", "freeze_blocks", "cache"):
            if part in self.parts:
                found[part] = self._measures(self.result(part, part))
        if "attention" in self.parts:
            found["attention"] = self._attention()
        if "influence" in self.parts:
            found["influence"] = self._influence()
        if "scores" in self.parts:
            found["scores"] = self._scores("scores", self.plan["scored"])
            found["budgets"] = self._scores("budgets", self.plan["budgets"])
        if "lens" in self.parts:
            leads = [record["parts"]["lens"]["leading_layer"] for record in self.records]
            found["lens"] = {
                "answer": _curve(self.bootstrap, self.result("lens", "lens")["answer"].values),
                "leading_layer": dict(sorted(Counter(leads).items())),
                "median_leading_layer": float(np.median(leads)),
            }
        return found

    def _members(self) -> dict[str, Array]:
        return {name: np.array([kind == name for kind in self.types]) for name in sorted(set(self.types))}

    def _dense(self) -> dict[str, Any]:
        right, known = self.dense_right, self.has_answers
        return {
            "samples": len(self.records),
            "images": len(set(self.images)),
            "accuracy": _curve(self.bootstrap, right[:, None]) if known else None,
            "by_type": {
                name: {"samples": int(members.sum()), "accuracy": float(right[members].mean()) if known else None}
                for name, members in self._members().items()
            },
        }

    def _measures(self, result: Result, members: Array | None = None) -> dict[str, Any]:
        bootstrap, chosen = self.bootstrap, slice(None) if members is None else members
        if members is not None:
            bootstrap = Bootstrap([self.images[number] for number in np.flatnonzero(members)], self.seed)
        dim = result["kl"].dims[-1]
        curves = {name: _curve(bootstrap, result[key].values[chosen]) for name, key in _MEASURES.items()}
        return {dim: result["kl"].labels(dim), **curves}

    def _by_type(self, result: Result) -> dict[str, Any]:
        kinds = {name: self._measures(result, members) for name, members in self._members().items()}
        return {**self._measures(result), "by_type": kinds if len(kinds) > 1 else {}}

    def _attention(self) -> dict[str, Any]:
        result = self.result("attention", "attention")
        tops, value, attended = (result[name].values for name in ("top", "value_l1", "map"))
        best = np.argsort(-np.nan_to_num(attended), axis=-1)[..., :10]
        curves = {
            "mass": result["mass"].values,
            "system_mass": result["system_mass"].values,
            "l1_top_visual": np.nanmean(np.take_along_axis(value, best, -1), -1),
            "l1_visual": np.nanmean(value, -1),
            "l1_text_sink": result["sink_l1"].values,
            "l1_text": result["text_l1"].values,
            "overlap_of_layers": np.array([_shared(sample[:-1], sample[1:]) for sample in tops]),
        }
        told = {name: _curve(self.bootstrap, values) for name, values in curves.items()}
        return {**told, "overlap_of_questions": self._overlap_of_questions(tops)}

    def _overlap_of_questions(self, tops: Array) -> dict[str, Any]:
        """Top attended tokens that two questions about one image share, against two images."""
        same, images, other = [], [], []
        for one, two in combinations(range(len(self.records)), 2):
            if self.images[one] == self.images[two]:
                same.append(_shared(tops[one], tops[two]))
                images.append(self.images[one])
            elif two == one + 1:
                other.append(_shared(tops[one], tops[two]))
        return {
            "pairs": len(same),
            "same_image": _curve(Bootstrap(images), np.array(same)) if same else None,
            "other_image": np.mean(other, axis=0).round(4).tolist() if other else None,
        }

    def _influence(self) -> dict[str, Any]:
        result = self.result("influence", "influence")
        distance = np.nanmax(result["distance"].values, axis=-1)
        quantiles = np.quantile(distance, (0.1, 0.5, 0.9), axis=0).round(6).tolist()
        return {
            "would_filter": _curve(self.bootstrap, result["would_filter"].values),
            "stability": _curve(self.bootstrap, result["stability"].values),
            "distance": dict(zip(("low", "median", "high"), quantiles, strict=True)),
        }

    def _scores(self, name: str, budgets: Sequence[float]) -> dict[str, Any]:
        result = self.result("scores", name)
        labels = {"score": result["kl"].labels("score"), "budget": list(budgets), "layer": result["kl"].labels("layer")}
        measures = {**_MEASURES, "overlap": "overlap"}
        return labels | {name: _curve(self.bootstrap, result[key].values) for name, key in measures.items()}


def _limited(record: Record, parts: Sequence[str]) -> Record:
    """The record with only these parts, and their time."""
    spent = {name: value for name, value in record["seconds"].items() if name in ("reading", *parts)}
    return {**record, "parts": {name: record["parts"][name] for name in parts}, "seconds": spent}


def _shared(first: Array, second: Array) -> list[float]:
    """The share of tokens that each row of `first` has in common with that of `second`."""
    return [overlap(one, other) for one, other in zip(first.tolist(), second.tolist(), strict=True)]


def _curve(bootstrap: Bootstrap, values: Array) -> Mapping[str, Any]:
    """Mean, low and high of `values` `[samples, ...]` in JSON numbers, null where not known; how many images."""
    return {"images": bootstrap.images} | {name: plain(part, 5) for name, part in bootstrap.curve(values).items()}
