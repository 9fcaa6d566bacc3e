"""Records of many samples, one a sample, stacked to arrays."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any

import numpy as np

from visipruner.analysis.arrays import Array
from visipruner.analysis.intervals import Bootstrap
from visipruner.analysis.measuring import Record
from visipruner.analysis.parts import SCORED, TRIED
from visipruner.analysis.result import Result
from visipruner.errors import ConfigError


class Records:
    """All records of an analysis as arrays.

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


def _limited(record: Record, parts: Sequence[str]) -> Record:
    """The record with only these parts, and their time."""
    spent = {name: value for name, value in record["seconds"].items() if name in ("reading", *parts)}
    return {**record, "parts": {name: record["parts"][name] for name in parts}, "seconds": spent}
