"""From many samples' records to evidence, stages and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from visipruner.analysis import curves
from visipruner.analysis.arrays import Array
from visipruner.analysis.evidence import TOLERANCES, Evidence, Metric
from visipruner.analysis.joint import settle
from visipruner.analysis.parts import NEEDED_FOR_STAGES
from visipruner.analysis.records import Records
from visipruner.analysis.result import Result
from visipruner.analysis.stages import Stages, stages_from
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample


class Study(Records):
    """All records of an analysis, and what follows from them; see `Records`."""

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
        return stages_from(self.evidence(metric), tolerance, self.seed)

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
        return settle(model, processor, samples, evidence, tolerance, max_new_tokens=max_new_tokens, seed=self.seed)

    def summary(self) -> dict[str, Any]:
        """Every part as JSON: curves (`mean`, `low`, `high`) over layers or conditions."""
        return curves.summary(self)
