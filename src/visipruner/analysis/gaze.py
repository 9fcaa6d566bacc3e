"""Attention on visual tokens, only the rows, layers and heads asked for; from any attention implementation."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from visipruner.analysis.arrays import Array, Labelled
from visipruner.analysis.reading import Reading, Rows
from visipruner.analysis.result import Result


def attention_weights(reading: Reading, layer: int, rows: Rows = "last", heads: Iterable[int] | None = None) -> Tensor:
    """Softmax weights of some rows of a layer, `[heads, rows, n]` float32.

    Computed from the reading's queries and keys, so the model may have run any attention implementation; the cost is
    that of the rows asked for.
    """
    states = reading.layers[layer]
    wanted = reading.rows(rows).nonzero().flatten()
    queries = states.queries[:, wanted].float()
    keys = states.keys.float().repeat_interleave(queries.shape[0] // states.keys.shape[0], dim=0)
    if heads is not None:
        chosen = torch.as_tensor(list(heads))
        queries, keys = queries[chosen], keys[chosen]
    logits = queries @ keys.transpose(1, 2) * states.scaling
    if states.softcap:
        logits = torch.tanh(logits / states.softcap) * states.softcap
    return logits.masked_fill(~states.allowed[wanted], float("-inf")).softmax(-1).nan_to_num(0)


def visual_attention(reading: Reading, rows: Rows = "last", top: int = 10) -> Result:
    """Where text looks at the image, layer by layer, heads averaged (paper, figures on attention sinks).

    Arrays, with L layers and n_v visual tokens:
        map `[layer, token]`: mean weight of `rows` on each visual token.
        mass `[layer]`: its sum over visual tokens; system_mass: the weight on the text before the image.
        top `[layer, rank]`: the `top` tokens with the largest weight (fewer where there are fewer).
        value_l1 `[layer, token]`: mean over heads of the L1 norm of each visual token's value vector.
        sink_l1 `[layer]`: the same for the most attended token of all (the text sink, mostly); text_l1: mean over the
            question's rows.
    """
    visual = reading.visual
    chosen = reading.rows(rows)
    system, question = reading.rows("system"), reading.rows("question")
    count = min(top, len(visual))
    maps, masses, system_masses, tops, values, sinks, texts = [], [], [], [], [], [], []
    for layer, states in enumerate(reading.layers):
        weights = attention_weights(reading, layer, chosen).mean((0, 1))
        l1 = states.values.float().abs().sum(-1).mean(0)
        maps.append(weights[visual])
        masses.append(weights[visual].sum())
        system_masses.append(weights[system].sum())
        tops.append(weights[visual].topk(count).indices)
        values.append(l1[visual])
        sinks.append(l1[weights.argmax()])
        texts.append(l1[question].mean())
    return Result(
        "attention",
        {
            "map": Labelled(_numbers(maps), ("layer", "token"), "share of attention"),
            "mass": Labelled(_numbers(masses), ("layer",), "share of attention"),
            "system_mass": Labelled(_numbers(system_masses), ("layer",), "share of attention"),
            "top": Labelled(_numbers(tops), ("layer", "rank"), "token"),
            "value_l1": Labelled(_numbers(values), ("layer", "token"), "L1 norm"),
            "sink_l1": Labelled(_numbers(sinks), ("layer",), "L1 norm"),
            "text_l1": Labelled(_numbers(texts), ("layer",), "L1 norm"),
        },
        ["An attention weight is no proof of use: see the knockouts.", "Heads are averaged."],
    )


def overlap(first: Iterable[int], second: Iterable[int]) -> float:
    """Shared tokens of two choices, as a share of the larger one."""
    one, other = set(first), set(second)
    return len(one & other) / max(len(one), len(other), 1)


def _numbers(parts: list[Tensor]) -> Array:
    return torch.stack(parts).cpu().numpy()
