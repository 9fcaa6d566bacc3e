"""Choosing positions: the best by score, evenly spread ones, shares of a budget, and few that stand for many.

Pure functions on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visipruner.contract.layout import uploaded


def top(scores: Tensor, count: int) -> Tensor:
    """Ascending positions of the `count` largest of `scores` `[n]`; the earlier one wins a tie."""
    return best_first(scores)[:count].sort().values


def best_first(scores: Tensor) -> Tensor:
    """Positions by falling `scores` `[n]`; the earlier one wins a tie, and what is not a number counts as the worst."""
    return scores.masked_fill(scores.isnan(), float("-inf")).argsort(descending=True, stable=True)


def scores_of(present: Tensor, scored: Tensor, scores: Tensor) -> Tensor:
    """`scores` `[m]` of the tokens `scored`, cut to those `present` among them; both are ascending numbers.

    For scores of an earlier layer: other methods of a composition may have taken tokens out since.
    """
    return scores.to(present.device)[torch.searchsorted(scored.to(present.device), present)]


def union(*positions: Tensor) -> Tensor:
    """Ascending positions that are in any of several."""
    return torch.unique(torch.cat(positions))  # type: ignore[no-any-return]


def first_smallest(costs: Tensor, slack: float) -> Tensor:
    """`[..., 1]` long: in each row of `costs` `[..., n]` the first place that is within `slack` of the smallest.

    Nothing is read from the device: greedy choices take many such steps.
    """
    return (costs <= costs.amin(-1, keepdim=True) + slack).to(torch.uint8).argmax(-1, keepdim=True)


def unit_vectors(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """`vectors` `[n, d]` with length one, a copy of this type; as `functional.normalize`, which takes one copy more."""
    copy = vectors.to(dtype, copy=True)
    return copy.div_(copy.norm(dim=-1, keepdim=True).clamp_min(1e-12))


def side_by_side(vectors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`[b, n, d]` of several `[n_b, d]`, zeros behind the shorter ones, and `[b, n]`, their lengths: not a number where
    there is none, and of vectors that are not numbers. One is not copied, which would take as long as some choices."""
    if len(vectors) == 1:
        return vectors[0][None], vectors[0].norm(dim=-1)[None]
    together = torch.nn.utils.rnn.pad_sequence(list(vectors), batch_first=True)
    places = torch.arange(together.shape[1], device=together.device)
    is_behind = places >= uploaded(np.array([len(part) for part in vectors]), places.device)[:, None]
    return together, together.norm(dim=-1).masked_fill(is_behind, float("nan"))


def first_of_each(chosen: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Ascending positions of greedy choices: of each row the first so many of steps `[b, 1]` long."""
    if not chosen:
        return [torch.empty(0, dtype=torch.long)] * len(counts)
    return [row[:count].sort().values for row, count in zip(torch.cat(list(chosen), 1), counts, strict=True)]


def others(positions: Tensor, total: int) -> Tensor:
    """Ascending places among `total` outside `positions`, all of which differ; reads nothing from the device."""
    taken = torch.zeros(total, dtype=torch.bool, device=positions.device).index_fill(0, positions, True)
    return taken.sort(stable=True).indices[: total - positions.numel()]


def spread(count: int, total: int, device: torch.device | None = None) -> Tensor:
    """`count` of `total` places at even distances, each in the middle of its stretch."""
    places = torch.arange(count, device=device)
    return (2 * places + 1) * total // max(2 * count, 1)


def spread_over_grid(count: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """`count` places of a grid `(rows, columns)` read line by line, evenly spread in both directions."""
    height, width = grid
    if count >= height * width:
        return torch.arange(height * width, device=device)
    lines = min(height, count, max(round((count * height / width) ** 0.5), -(-count // width)))
    per_line = [len(part) for part in torch.arange(count).tensor_split(max(lines, 1))]
    rows = spread(lines, height).tolist()
    places = [row * width + spread(number, width) for row, number in zip(rows, per_line, strict=False)]
    return torch.cat([torch.empty(0, dtype=torch.long), *places]).to(device)


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` (at most their sum) divided among images of `sizes` tokens in proportion, by largest remainder."""
    total = sum(sizes)
    count = min(count, total)
    exact = [count * size / total if total else 0.0 for size in sizes]
    result = [int(value) for value in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (result[i] - exact[i], i))
    for index in by_remainder[: count - sum(result)]:
        result[index] += 1
    return result


# ---- clusters --------------------------------------------------------------------------------------------------------


def density_peaks(states: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Centres `[clusters]` long and every token's cluster `[n]` long, for `states` `[n, d]` float: density-peak
    clustering among nearest neighbours (DPC-KNN; Du et al., "Study on density peaks clustering based on k-nearest
    neighbors", 2016).

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
