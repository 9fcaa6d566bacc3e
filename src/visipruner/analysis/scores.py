"""Which visual tokens the last row depends on, layer by layer, and whether other scores would choose as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visipruner.analysis.arrays import Labelled
from visipruner.analysis.gaze import attention_weights, overlap
from visipruner.analysis.knockout import keep_only
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.result import Result
from visipruner.contract.influence import influence

Score = Callable[[Reading, int, Tensor], Tensor]


def token_influence(
    reading: Reading, filter_threshold: float = 0.995, token_threshold: float = 0.2, top: int = 10
) -> Result:
    """The paper's score of every visual token in every layer (section 4.2).

    With o the last row's attention output and c_j what token j brings to it. Arrays, L layers, n_v tokens:
        distance `[layer, token]`: 1 - cos(o, o - c_j). norm: ||c_j||. relative: ||c_j|| / ||o||.
        would_filter `[layer]`: whether any cosine is below `filter_threshold`.
        would_keep `[layer]`: how many tokens have ||c_j|| above `token_threshold`.
        top `[layer, rank]`: the `top` tokens by ||c_j||.
        stability `[layer]`: overlap of a layer's top tokens with those of the next layer (NaN for the last).
    """
    distances, norms, relatives, tops = [], [], [], []
    count = min(top, len(reading.visual))
    for layer, states in enumerate(reading.layers):
        score = influence(attention_weights(reading, layer)[:, 0], states.values, reading.visual)
        distances.append((1 - score.cosine).clamp(min=0))
        norms.append(score.norm)
        relatives.append(score.norm / score.output_norm.clamp(min=1e-30))
        tops.append(score.norm.topk(count).indices)
    chosen = [tokens.tolist() for tokens in tops]
    stability = [overlap(one, other) for one, other in pairwise(chosen)] + [np.nan]
    distance = torch.stack(distances).numpy()
    return Result(
        "influence",
        {
            "distance": Labelled(distance, ("layer", "token"), "1 - cosine"),
            "norm": Labelled(torch.stack(norms).numpy(), ("layer", "token"), "L2 norm"),
            "relative": Labelled(torch.stack(relatives).numpy(), ("layer", "token"), "share of the output's norm"),
            "would_filter": Labelled((distance > 1 - filter_threshold).any(-1).astype(float), ("layer",), "0 or 1"),
            "would_keep": Labelled(
                (torch.stack(norms) > token_threshold).sum(-1).numpy().astype(float), ("layer",), "tokens"
            ),
            "top": Labelled(np.array(chosen), ("layer", "rank"), "token"),
            "stability": Labelled(np.array(stability), ("layer",), "share"),
        },
        ["Influence is the last prompt row's; what other rows take from the image is not in it."],
    )


def by_influence(reading: Reading, layer: int, seed: Tensor) -> Tensor:
    """||c_j||_2 (VisiPruner)."""
    weights = attention_weights(reading, layer)[:, 0]
    return influence(weights, reading.layers[layer].values, reading.visual).norm


def by_last_row(reading: Reading, layer: int, seed: Tensor) -> Tensor:
    """The last prompt row's attention, mean over heads (FastV and others)."""
    return attention_weights(reading, layer).mean((0, 1))[reading.visual]


def by_text_mean(reading: Reading, layer: int, seed: Tensor) -> Tensor:
    """Attention of all question rows, mean over rows and heads (SparseVLM and others)."""
    return attention_weights(reading, layer, "question").mean((0, 1))[reading.visual]


def by_visual(reading: Reading, layer: int, seed: Tensor) -> Tensor:
    """Attention that visual rows pay each other, mean over rows and heads: blind to the question."""
    return attention_weights(reading, layer, "visual").mean((0, 1))[reading.visual]


def at_random(reading: Reading, layer: int, seed: Tensor) -> Tensor:
    """A seeded random order, another one in each layer."""
    generator = torch.Generator().manual_seed(int(seed) * 1000 + layer)
    return torch.rand(len(reading.visual), generator=generator)


SCORES: dict[str, Score] = {
    "influence": by_influence,
    "last_row": by_last_row,
    "text_mean": by_text_mean,
    "visual": by_visual,
    "random": at_random,
}


def compare_scores(
    probe: Probe,
    reading: Reading,
    layers: Iterable[int],
    budgets: Sequence[int],
    scores: Sequence[str] = tuple(SCORES),
    seed: int = 0,
) -> Result:
    """Different scores choose equally many tokens at the same layer; only those go on (paper, table on scores).

    Arrays `[score, budget, layer]`: kl, agrees, right; overlap: tokens shared with influence's choice. A layer is the
    one that is looked at; the tokens leave before the next.
    """
    chosen_layers = list(layers)
    budgets = [min(budget, len(reading.visual)) for budget in budgets]
    shape = (len(scores), len(budgets), len(chosen_layers))
    found = {name: np.full(shape, np.nan) for name in ("kl", "agrees", "right", "overlap")}
    order = {
        (name, layer): SCORES[name](reading, layer, torch.tensor(seed)).argsort(descending=True, stable=True)
        for name in dict.fromkeys((*scores, "influence"))
        for layer in chosen_layers
    }
    for b, budget in enumerate(budgets):
        choices = [(layer, order[name, layer][:budget]) for name in scores for layer in chosen_layers]
        outcomes = iter(keep_only(probe, reading, choices))
        for s, name in enumerate(scores):
            for place, layer in enumerate(chosen_layers):
                outcome = next(outcomes)
                found["kl"][s, b, place] = outcome.kl
                found["agrees"][s, b, place] = outcome.agrees
                found["right"][s, b, place] = np.nan if outcome.right is None else outcome.right
                mine, ours = order[name, layer][:budget].tolist(), order["influence", layer][:budget].tolist()
                found["overlap"][s, b, place] = overlap(mine, ours)
    dims = ("score", "budget", "layer")
    coords: dict[str, list[Any]] = {"score": list(scores), "budget": budgets, "layer": chosen_layers}
    units = {"kl": "nats", "agrees": "0 or 1", "right": "0 or 1", "overlap": "share"}
    arrays = {name: Labelled(values, dims, units[name], coords) for name, values in found.items()}
    return Result("scores", arrays, ["Tokens leave once and for good; no shallow stage and no exit are at work."])
