"""Which visual tokens the last row depends on, layer by layer, and whether other scores would choose as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visipruner.analysis.gaze import attention_weights, overlap
from visipruner.analysis.knockout import keep_only
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.result import Labelled, Result
from visipruner.contract.influence import influence

Score = Callable[[Reading, int, int], Tensor]


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
    count = min(top, len(reading.visual))
    scores = [
        influence(attention_weights(reading, layer)[:, 0], states.values, reading.visual)
        for layer, states in enumerate(reading.layers)
    ]
    distance = torch.stack([(1 - score.cosine).clamp(min=0) for score in scores]).numpy()
    norm = torch.stack([score.norm for score in scores]).numpy()
    relative = torch.stack([score.norm / score.output_norm.clamp(min=1e-30) for score in scores]).numpy()
    chosen = [score.norm.topk(count).indices.tolist() for score in scores]
    stability = [overlap(one, other) for one, other in pairwise(chosen)] + [np.nan]
    layer, token = ("layer",), ("layer", "token")
    return Result(
        "influence",
        {
            "distance": Labelled(distance, token, "1 - cosine"),
            "norm": Labelled(norm, token, "L2 norm"),
            "relative": Labelled(relative, token, "share of the output's norm"),
            "would_filter": Labelled((distance > 1 - filter_threshold).any(-1).astype(float), layer, "0 or 1"),
            "would_keep": Labelled((norm > token_threshold).sum(-1).astype(float), layer, "tokens"),
            "top": Labelled(np.array(chosen), ("layer", "rank"), "token"),
            "stability": Labelled(np.array(stability), layer, "share"),
        },
        ["Influence is the last prompt row's; what other rows take from the image is not in it."],
    )


def _influence_of(reading: Reading, layer: int, seed: int) -> Tensor:
    weights = attention_weights(reading, layer)[:, 0]
    return influence(weights, reading.layers[layer].values, reading.visual).norm


def _attention_of(rows: str) -> Score:
    def score(reading: Reading, layer: int, seed: int) -> Tensor:
        return attention_weights(reading, layer, rows).mean((0, 1))[reading.visual]

    return score


def _random(reading: Reading, layer: int, seed: int) -> Tensor:
    """A seeded random order, another one in each layer."""
    generator = torch.Generator().manual_seed(seed * 1000 + layer)
    return torch.rand(len(reading.visual), generator=generator)


SCORES: dict[str, Score] = {
    "influence": _influence_of,  # ||c_j||_2 (VisiPruner)
    # Attention, mean over rows and heads: of the last prompt row (FastV and others), of all question rows (SparseVLM
    # and others), and of visual rows among themselves, which is blind to the question.
    "last_row": _attention_of("last"),
    "text_mean": _attention_of("question"),
    "visual": _attention_of("visual"),
    "random": _random,
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
        (name, layer): SCORES[name](reading, layer, seed).argsort(descending=True, stable=True)
        for name in dict.fromkeys((*scores, "influence"))
        for layer in chosen_layers
    }
    for b, budget in enumerate(budgets):
        choices = [(layer, order[name, layer][:budget]) for name in scores for layer in chosen_layers]
        outcomes = iter(keep_only(probe, reading, choices))
        for s, name in enumerate(scores):
            for place, layer in enumerate(chosen_layers):
                outcome = next(outcomes)
                mine, ours = order[name, layer][:budget].tolist(), order["influence", layer][:budget].tolist()
                right = np.nan if outcome.right is None else outcome.right
                told = (outcome.kl, outcome.agrees, right, overlap(mine, ours))
                for values, number in zip(found.values(), told, strict=True):
                    values[s, b, place] = number
    dims = ("score", "budget", "layer")
    coords: dict[str, list[Any]] = {"score": list(scores), "budget": budgets, "layer": chosen_layers}
    units = {"kl": "nats", "agrees": "0 or 1", "right": "0 or 1", "overlap": "share"}
    arrays = {name: Labelled(values, dims, units[name], coords) for name, values in found.items()}
    return Result("scores", arrays, ["Tokens leave once and for good; no shallow stage and no exit are at work."])
