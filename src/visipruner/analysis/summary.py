"""From one record a sample to curves with intervals: what the report draws and `analysis.json` holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np

from visipruner.analysis.attention import overlap
from visipruner.analysis.evidence import TOLERANCES, Budget, Evidence, Metric
from visipruner.analysis.intervals import Bootstrap
from visipruner.analysis.joint import settle
from visipruner.analysis.parts import NEEDED_FOR_STAGES, SCORED, TRIED
from visipruner.analysis.results import Array, Result
from visipruner.analysis.stages import Stages, stages_from
from visipruner.analysis.study import Record, Task, measure
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample
from visipruner.models.fingerprint import fingerprint

_SWEEPS = {
    "sweeps": ("sweep_shallow_to_deep", "discard", "sweep_window"),
    "control": ("swap_window", "swap_all"),
}
_MEASURES = ("kl", "agreement", "accuracy")


class Study:
    """All records of an analysis, and what follows from them.

    Args:
        records: at least one, all from one model. Parts that not all of them have, as after an interrupted run, are
            left out of the study's own `records`.
    """

    def __init__(self, records: Sequence[Record], seed: int = 0) -> None:
        if not records:
            raise ConfigError("There is nothing to summarise: no sample was measured.")
        self.parts = [part for part in records[0]["parts"] if all(part in record["parts"] for record in records)]
        self.records = [_limited(record, self.parts) for record in records]
        self.images = [record["image"] for record in records]
        self.types = [record["type"] for record in records]
        self._seed = seed
        self._bootstrap = Bootstrap(self.images, seed)

    @property
    def dense_right(self) -> Array:
        """`[S]`: 1 where the dense answer is right, NaN where no right answer is known."""
        return np.array(
            [np.nan if record["is_right"] is None else record["is_right"] for record in self.records], float
        )

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
        if metric == "kl":
            return result["kl"].values
        if metric == "agreement":
            return np.asarray(1 - result["agrees"].values)
        dense = self.dense_right.reshape(-1, *[1] * (result["right"].values.ndim - 1))
        return np.asarray(dense - result["right"].values)

    def evidence(self, metric: Metric = "kl") -> Evidence:
        """What stages are read off, in the unit of a loss: KL sees a change long before an answer flips.

        Raises ConfigError where the parts it takes were not measured.
        """
        missing = [part for part in NEEDED_FOR_STAGES if part not in self.parts]
        if missing:
            raise ConfigError(f"Stages need the parts {', '.join(missing)} too.")
        budgets = self.result("scores", "budgets")
        influence = self.result("influence", "influence")
        return Evidence(
            below=self.loss(self.result("sweeps", "sweep_shallow_to_deep"), metric),
            discard=self.loss(self.result("sweeps", "discard"), metric),
            window=self.loss(self.result("sweeps", "sweep_window"), metric),
            swapped_window=self.loss(self.result("control", "swap_window"), metric),
            swapped=self.loss(self.result("control", "swap_all"), metric)[:, 0],
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
        """Stages by a loss, see `stages_from`.

        Raises ConfigError as `evidence` does.
        """
        return stages_from(self.evidence(metric), tolerance, self._seed)

    def settled(
        self,
        model: Any,
        processor: Any,
        samples: Sequence[Sample],
        metric: Metric = "kl",
        tolerance: float | None = None,
        max_new_tokens: int = 32,
    ) -> Iterator[Stages]:
        """`stages`, whose proposed settings are run as a whole and made more cautious while they lose too much.

        Yields one result an attempt, the last one being the answer. `samples` are those that were measured, in order.
        """
        evidence = self.evidence(metric)
        return settle(model, processor, samples, evidence, tolerance, max_new_tokens=max_new_tokens, seed=self._seed)

    # ---- curves -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Every part as JSON: curves (`mean`, `low`, `high`) over layers or conditions."""
        found: dict[str, Any] = {"dense": self._dense()}
        for part, names in _SWEEPS.items():
            if part in self.parts:
                found[part] = {name: self._by_type(self.result(part, name), "layer") for name in names}
        for part, name, dim in (
            ("shallow", "shallow", "condition"),
            ("skip", "skip", "layer"),
            ("freeze", "freeze", "layer"),
            ("freeze_blocks", "freeze_blocks", "layer"),
            ("cache", "cache", "window"),
        ):
            if part in self.parts:
                found[part] = self._measures(self.result(part, name), dim)
        if "attention" in self.parts:
            found["attention"] = self._attention()
        if "influence" in self.parts:
            found["influence"] = self._influence()
        if "scores" in self.parts:
            found["scores"] = self._scores("scores", self.plan["scored"])
            found["budgets"] = self._scores("budgets", self.plan["budgets"])
        if "lens" in self.parts:
            found["lens"] = self._lens()
        return found

    def _dense(self) -> dict[str, Any]:
        right = self.dense_right
        known = not np.isnan(right).any()
        return {
            "samples": len(self.records),
            "images": len(set(self.images)),
            "accuracy": _plain(self._bootstrap.curve(right[:, None])) if known else None,
            "by_type": {
                name: {"samples": int(members.sum()), "accuracy": float(right[members].mean()) if known else None}
                for name, members in self._members().items()
            },
        }

    def _members(self) -> dict[str, Array]:
        return {name: np.array([kind == name for kind in self.types]) for name in sorted(set(self.types))}

    def _measures(self, result: Result, dim: str, members: Array | None = None) -> dict[str, Any]:
        chosen = np.ones(len(self.records), bool) if members is None else members
        bootstrap = self._bootstrap
        if members is not None:
            bootstrap = Bootstrap(
                [image for image, there in zip(self.images, members, strict=True) if there], self._seed
            )
        values = {
            "kl": result["kl"].values,
            "agreement": result["agrees"].values,
            "accuracy": result["right"].values,
        }
        return {
            dim: result["kl"].labels(dim),
            **{name: _plain(bootstrap.curve(values[name][chosen])) for name in _MEASURES},
        }

    def _by_type(self, result: Result, dim: str) -> dict[str, Any]:
        kinds = {name: self._measures(result, dim, members) for name, members in self._members().items()}
        return {**self._measures(result, dim), "by_type": kinds if len(kinds) > 1 else {}}

    def _attention(self) -> dict[str, Any]:
        result = self.result("attention", "attention")
        tops = result["top"].values
        value, attended = result["value_l1"].values, result["map"].values
        best = np.argsort(-np.nan_to_num(attended), axis=-1)[..., :10]
        return {
            "mass": _plain(self._bootstrap.curve(result["mass"].values)),
            "system_mass": _plain(self._bootstrap.curve(result["system_mass"].values)),
            "l1_top_visual": _plain(self._bootstrap.curve(np.nanmean(np.take_along_axis(value, best, -1), -1))),
            "l1_visual": _plain(self._bootstrap.curve(np.nanmean(value, -1))),
            "l1_text_sink": _plain(self._bootstrap.curve(result["sink_l1"].values)),
            "l1_text": _plain(self._bootstrap.curve(result["text_l1"].values)),
            "overlap_of_questions": self._overlap_of_questions(tops),
            "overlap_of_layers": _plain(self._bootstrap.curve(_overlap_of_layers(tops))),
        }

    def _overlap_of_questions(self, tops: Array) -> dict[str, Any]:
        """Top attended tokens that two questions about one image share, against two images."""
        same, other = [], []
        for one in range(len(self.records)):
            for two in range(one + 1, len(self.records)):
                shared = [overlap(a, b) for a, b in zip(tops[one].tolist(), tops[two].tolist(), strict=True)]
                if self.images[one] == self.images[two]:
                    same.append((self.images[one], shared))
                elif two == one + 1:
                    other.append(shared)
        curve = Bootstrap([image for image, _ in same]).curve(np.array([s for _, s in same])) if same else None
        return {
            "pairs": len(same),
            "same_image": None if curve is None else _plain(curve),
            "other_image": np.mean(other, axis=0).round(4).tolist() if other else None,
        }

    def _influence(self) -> dict[str, Any]:
        result = self.result("influence", "influence")
        distance = np.nanmax(result["distance"].values, axis=-1)
        return {
            "would_filter": _plain(self._bootstrap.curve(result["would_filter"].values)),
            "stability": _plain(self._bootstrap.curve(result["stability"].values)),
            "distance": {
                name: np.quantile(distance, share, axis=0).round(6).tolist()
                for name, share in (("low", 0.1), ("median", 0.5), ("high", 0.9))
            },
        }

    def _scores(self, name: str, budgets: Sequence[Budget]) -> dict[str, Any]:
        result = self.result("scores", name)
        array = result["kl"]
        found: dict[str, Any] = {
            "score": array.labels("score"),
            "budget": list(budgets),
            "layer": array.labels("layer"),
        }
        for label, key in (("kl", "kl"), ("agreement", "agrees"), ("accuracy", "right"), ("overlap", "overlap")):
            values = result[key].values
            curve = self._bootstrap.curve(values.reshape(len(values), -1))
            found[label] = _plain({part: numbers.reshape(values.shape[1:]) for part, numbers in curve.items()})
        return found

    def _lens(self) -> dict[str, Any]:
        leads = [record["parts"]["lens"]["leading_layer"] for record in self.records]
        return {
            "answer": _plain(self._bootstrap.curve(self.result("lens", "lens")["answer"].values)),
            "leading_layer": dict(sorted(Counter(leads).items())),
            "median_leading_layer": float(np.median(leads)),
        }


def find_stages(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    *,
    metric: Metric = "kl",
    tolerance: float | None = None,
    max_new_tokens: int = 32,
    folder: Path | None = None,
) -> Stages:
    """Where shallow ends, where fusion happens and where vision can leave, with intervals; and settings that follow.

    Args:
        model, processor: a stock multimodal model and its processor, with a chat template.
        samples: image-question pairs, with or without answers.
        metric: "kl", "agreement" with the dense answers, or "accuracy" where answers are known.
        tolerance: loss that counts as none, see `stages_from`; by default 0.05 nats, 0.05 or 0.02.
        folder: keeps every finished sample, so that an interrupted search goes on where it was.

    Raises ConfigError where `folder` holds an analysis of something else, other weights included.
    """
    name = str(getattr(model.config, "name_or_path", ""))
    attention = str(model.config.get_text_config()._attn_implementation)
    dtype, weights = str(model.dtype).removeprefix("torch."), fingerprint(model)
    task = Task(name, dtype, attention, NEEDED_FOR_STAGES, max_new_tokens, weights)
    study = Study(list(measure(model, processor, samples, task, folder)))
    return list(study.settled(model, processor, samples, metric, tolerance, max_new_tokens))[-1]


def _limited(record: Record, parts: Sequence[str]) -> Record:
    """The record with only these parts, and their time."""
    spent = {name: value for name, value in record["seconds"].items() if name in ("reading", *parts)}
    return {**record, "parts": {name: record["parts"][name] for name in parts}, "seconds": spent}


def _overlap_of_layers(tops: Array) -> Array:
    """`[S, L - 1]`: top tokens that a layer shares with the next."""
    pairs = zip(tops[:, :-1].reshape(-1, tops.shape[-1]), tops[:, 1:].reshape(-1, tops.shape[-1]), strict=True)
    shared = [overlap(one.tolist(), other.tolist()) for one, other in pairs]
    return np.array(shared).reshape(tops.shape[0], -1)


def _plain(curve: dict[str, Array]) -> dict[str, Any]:
    """JSON numbers; what is not known is null."""
    found = {}
    for name, values in curve.items():
        rounded = np.round(np.asarray(values, float), 5).astype(object)
        rounded[np.isnan(np.asarray(values, float))] = None
        found[name] = rounded.tolist()
    return found
