"""Density-peak clustering among nearest neighbours (DPC-KNN): few tokens that stand for many. Pure functions.

Du et al., "Study on density peaks clustering based on k-nearest neighbors", 2016, as used for visual tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def density_peaks(states: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres `[clusters]` long and every token's cluster `[n]` long, for `states` `[n, d]` float.

    Density of a token: exp(-mean of squared distances to its k nearest, itself included), distances over sqrt(d), and
    k the number of clusters, as in SparseVLM's released code. Centres have the largest product of density and distance
    to the nearest denser token; others join the nearest centre. Of equally dense tokens the earlier counts as the
    denser. Densities are compared by their logarithms: of large states they are smaller than any float.
    """
    n = len(states)
    clusters = min(clusters, n)
    distances = torch.cdist(states, states, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    log_density = -distances.topk(clusters, largest=False).values.square().mean(-1)
    order = torch.arange(n, device=states.device)
    tied = (log_density[None] == log_density[:, None]) & (order[None] < order[:, None])
    denser = (log_density[None] > log_density[:, None]) | tied
    to_denser = distances.masked_fill(~denser, float("inf")).min(-1).values
    to_denser = torch.where(denser.any(-1), to_denser, distances.max())
    centres = (log_density + to_denser.log()).argsort(descending=True, stable=True)[:clusters].sort().values
    members = distances[:, centres].argmin(-1)
    members[centres] = torch.arange(len(centres), device=states.device)
    return centres, members


def cluster_means(states: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres `[c]` long, ascending, and the mean of every cluster `[c, d]`."""
    centres, members = density_peaks(states, clusters)
    sums = states.new_zeros(len(centres), states.shape[-1]).index_add(0, members, states)
    return centres, sums / members.bincount(minlength=len(centres))[:, None]
