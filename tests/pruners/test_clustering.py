"""Density peaks against loops written from the definition, and on states for which a density is no float any more."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
import torch
from torch import Tensor

from visipruner.contract.choosing import cluster_means, density_peaks


def peaks_by_hand(states: Tensor, clusters: int) -> tuple[list[int], list[int]]:
    """Centres and every state's cluster, in float64 and decimals."""
    points = states.double().tolist()
    width = len(points[0])
    between = [[math.dist(a, b) / math.sqrt(width) for b in points] for a in points]
    # Two that are each other's nearest have the same density: the earlier counts as the denser.
    density = [
        (Decimal(-sum(d * d for d in sorted(row)[:clusters]) / clusters).exp(), -i) for i, row in enumerate(between)
    ]
    scores = []
    for i, row in enumerate(between):
        denser = [row[j] for j in range(len(points)) if density[j] > density[i]]
        scores.append(density[i][0] * Decimal(min(denser) if denser else max(map(max, between))))
    centres = sorted(sorted(range(len(points)), key=lambda i: -scores[i])[:clusters])
    return centres, [min(range(clusters), key=lambda c: row[centres[c]]) for row in between]


@pytest.mark.parametrize(("n", "clusters"), [(12, 2), (30, 4), (57, 9), (5, 5), (8, 1)])
def test_density_peaks(n: int, clusters: int) -> None:
    states = torch.randn(n, 6, generator=torch.Generator().manual_seed(n))
    centres, members = density_peaks(states, clusters)
    assert (centres.tolist(), members.tolist()) == peaks_by_hand(states, clusters)


def test_densities_that_are_no_floats() -> None:
    """exp(-d^2) of hidden states with large channels is 0 in float32 and float64, for every token alike."""
    states = 40 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    centres, members = density_peaks(states, 4)
    assert (centres.tolist(), members.tolist()) == peaks_by_hand(states, 4)


def test_a_group_is_one_cluster() -> None:
    noise = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(40) % 4
    states = torch.eye(8)[groups] * 3 + 0.1 * noise
    centres, means = cluster_means(states, 4)
    assert sorted(groups[centres].tolist()) == [0, 1, 2, 3]
    for centre, mean in zip(centres, means, strict=True):
        torch.testing.assert_close(mean, states[groups == groups[centre]].mean(0))


def test_equal_states_are_one_place() -> None:
    centres, members = density_peaks(torch.ones(6, 3), 2)
    assert len(centres) == 2
    assert set(members.tolist()) <= {0, 1}
