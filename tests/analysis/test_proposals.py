"""Combinations of parts that were found at several tolerances."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.test_stages import staged_evidence
from visipruner.analysis.joint import proposals
from visipruner.analysis.stages import stages_from


def test_every_combination_with_its_cost_and_loss() -> None:
    graded = staged_evidence().discard.copy()
    graded[:, 6], graded[:, 7] = 0.03, 0.004
    below = staged_evidence().below.copy()
    below[:, 2:4] = 0.02
    seen = staged_evidence(discard=graded, below=below)
    found = [stages_from(seen, tolerance) for tolerance in (0.05, 0.01, 0.001)]
    made = proposals(seen, found)
    assert [(one.pruner.shallow_end, one.pruner.exit_layer) for one in made] == [
        (3, 6), (1, 6), (3, 7), (1, 7), (3, None), (1, None),
    ]  # fmt: skip
    assert {(one.pruner.filter_layer, one.pruner.keep_tokens) for one in made} == {(4, 5)}
    assert made[0].pruner == found[0].pruner
    # Ten tokens in layers 0 to 4, five in layer 5.
    assert [one.token_layers for one in made[::2]] == [55, 60, 65]
    first, longer, _, both, never, _ = made
    assert all(first.is_as_bold_as(other) for other in made)
    assert never.is_as_bold_as(never)
    assert not any(other.is_as_bold_as(first) for other in made[1:])
    assert longer.is_as_bold_as(both)
    assert not longer.is_as_bold_as(never)
    assert not never.is_as_bold_as(longer)
    assert [one.parts_loss for one in made] == pytest.approx([0.05, 0.03, 0.024, 0.004, 0.02, 0.0005])


@pytest.mark.parametrize("early", [0.001, 0.03])
def test_a_filter_below_a_shallow_stage_is_combined_with_shorter_ones_only(early: float) -> None:
    """Harmless in layer 0 at the tolerance of the short stage too, or only at that of the long one."""
    below = np.zeros((12, 9))
    below[:, 1:] = 0.02  # shallow to layer 5 at the larger tolerance, not at all at the smaller
    below[:, 6:] = 1.0
    kept = np.ones((12, 2, 4))
    kept[:, 1, 0] = early
    kept[:, 1, 3] = 0.0
    discard = np.ones((12, 9))
    discard[:, 8] = 0
    seen = staged_evidence(below=below, kept=kept, discard=discard)
    found = [stages_from(seen, tolerance) for tolerance in (0.05, 0.01)]
    pairs = {(one.pruner.shallow_end, one.pruner.filter_layer) for one in proposals(seen, found)}
    assert pairs == {(0, 0), (0, 6), (5, 6)}
    assert proposals(seen, []) == []
