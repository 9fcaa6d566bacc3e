"""Settings whose parts were each found harmless, at one tolerance or a stricter one, in every combination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from visipruner.analysis.arrays import Array
from visipruner.analysis.evidence import Evidence, tokens_of
from visipruner.analysis.filtering import FilterChoice, filter_choice
from visipruner.analysis.stages import Stages, settings_from
from visipruner.pruners.visipruner import VisiPruner

# A part that loses nothing by itself may still lose something beside others.
_LEAST = 0.01


@dataclass(frozen=True)
class Proposal:
    """Settings to try.

    Attributes:
        token_layers: visual tokens, summed over the layers they pass; of the largest image, where they differ.
        parts_loss: what shallow stage, filter and exit lose by themselves, summed; a hundredth of the tolerance at
            least.
    """

    pruner: VisiPruner
    token_layers: int
    parts_loss: float

    def is_as_bold_as(self, other: Proposal) -> bool:
        """Whether no part of it, shallow stage, filter or exit, takes less away than the other's."""
        return all(mine >= theirs for mine, theirs in zip(self._boldness(), other._boldness(), strict=True))

    def _boldness(self) -> tuple[float, ...]:
        """Larger is bolder, for shallow stage, filter layer, budget and exit."""
        pruner = self.pruner
        assert pruner.filter_layer is not None
        kept = pruner.keep_ratio if pruner.keep_tokens is None else pruner.keep_tokens
        assert kept is not None
        leave = float("inf") if pruner.exit_layer is None else pruner.exit_layer
        return pruner.shallow_end, -pruner.filter_layer, -kept, -leave


def proposals(evidence: Evidence, found: Sequence[Stages], seed: int = 0) -> list[Proposal]:
    """All combinations of the parts of `found`, which was read off `evidence` at several tolerances, the largest first.

    A filter comes after the shallow stage it was found with, so filters are also looked for from the ends of the
    shorter ones on. The cheapest combinations come first; of those that cost the same, the one with the longest
    shallow stage.
    """
    choices = [(stages, stages.filter) for stages in found if stages.filter is not None]
    if not choices:
        return []
    num_layers, tolerance = found[0].num_layers, found[0].tolerance
    shallow_ends = {stages.overall.sure_shallow_end for stages, _ in choices}
    leaves = {stages.overall.sure_exit(num_layers) for stages, _ in choices}
    more = [
        filter_choice(evidence, shallow_end, stages.overall.sure_exit(num_layers), stages.tolerance, seed)
        for stages, _ in choices
        for shallow_end in sorted(shallow_ends)
    ]
    # The first of those that differ only in thresholds, which a fixed layer and budget do not use.
    filters = {
        (choice.layer, choice.budget): choice
        for choice in reversed([*(choice for _, choice in choices), *more])
        if choice is not None
    }
    whole = evidence.relative_norm.shape[-1]
    made = []
    for shallow_end, choice, leave in product(shallow_ends, filters.values(), leaves):
        if not shallow_end <= choice.layer < leave - 1:
            continue
        lost = _losses(evidence, shallow_end, choice, leave)
        made.append(
            Proposal(
                pruner=settings_from(shallow_end, choice, leave, num_layers),
                token_layers=(choice.layer + 1) * whole + (leave - choice.layer - 1) * tokens_of(choice.budget, whole),
                parts_loss=max(sum(max(0.0, loss) for loss in lost), _LEAST * tolerance),
            )
        )
    return sorted(made, key=lambda one: (one.token_layers, -one.pruner.shallow_end))


def _losses(evidence: Evidence, shallow_end: int, choice: FilterChoice, leave: int) -> tuple[float, float, float]:
    def mean(values: Array) -> float:
        return float(np.nanmean(values))

    return mean(evidence.below[:, shallow_end]), choice.loss.value, mean(evidence.discard[:, leave])
