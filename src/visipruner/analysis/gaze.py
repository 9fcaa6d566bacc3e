"""What a dense reading shows: attention on visual tokens, and what layers and heads would say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading, Rows
from visipruner.analysis.rerun import ROWS_AT_ONCE
from visipruner.analysis.result import Labelled, Result
from visipruner.contract.influence import softcapped
from visipruner.errors import ConfigError

_LOOKS: dict[str, tuple[tuple[str, ...], str]] = {
    "map": (("layer", "token"), "share of attention"),
    "mass": (("layer",), "share of attention"),
    "system_mass": (("layer",), "share of attention"),
    "top": (("layer", "rank"), "token"),
    "value_l1": (("layer", "token"), "L1 norm"),
    "sink_l1": (("layer",), "L1 norm"),
    "text_l1": (("layer",), "L1 norm"),
}


def attention_weights(reading: Reading, layer: int, rows: Rows = "last") -> Tensor:
    """Softmax weights of some rows of a layer, `[heads, rows, n]` float32.

    Computed from the reading's queries and keys, so the model may have run any attention implementation; the cost is
    that of the rows asked for.
    """
    states = reading.layers[layer]
    wanted = reading.rows(rows).nonzero().flatten()
    queries = states.queries[:, wanted].float()
    keys = states.keys.float().repeat_interleave(queries.shape[0] // states.keys.shape[0], dim=0)
    logits = softcapped(queries @ keys.transpose(1, 2) * states.scaling, states.softcap)
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
    found: dict[str, list[Tensor]] = {name: [] for name in _LOOKS}
    for layer, states in enumerate(reading.layers):
        weights = attention_weights(reading, layer, chosen).mean((0, 1))
        l1 = states.values.float().abs().sum(-1).mean(0)
        seen = weights[visual]
        told = (
            seen,
            seen.sum(),
            weights[system].sum(),
            seen.topk(count).indices,
            l1[visual],
            l1[weights.argmax()],
            l1[question].mean(),
        )
        for parts, value in zip(found.values(), told, strict=True):
            parts.append(value)
    arrays = {name: Labelled(torch.stack(found[name]).cpu().numpy(), *look) for name, look in _LOOKS.items()}
    return Result(
        "attention", arrays, ["An attention weight is no proof of use: see the knockouts.", "Heads are averaged."]
    )


def overlap(first: Iterable[int], second: Iterable[int]) -> float:
    """Shared tokens of two choices, as a share of the larger one."""
    one, other = set(first), set(second)
    return len(one & other) / max(len(one), len(other), 1)


def logit_lens(probe: Probe, reading: Reading, row: int | None = None, top: int = 5) -> Result:
    """softmax(W_u norm(h)) of one row after every layer (nostalgebraist 2020; paper, section 3).

    Args:
        row: by default the last prompt row, which predicts the first answer token.
        top: how many tokens to name. Raises ConfigError where the vocabulary has not so many.

    Arrays: top `[layer, rank]` token ids and their probability; answer `[layer]`, the probability of the dense
    answer's first token (last prompt row only: else of the row's own final prediction). Layer l is the state after
    layer l; the last one is what the model outputs.
    """
    row = reading.last if row is None else row
    states = torch.stack([*(states.hidden[row] for states in reading.layers[1:]), reading.final[row]])
    probabilities = probe.unembed(states).softmax(-1)
    _check_top(top, probabilities.shape[-1])
    best = probabilities.topk(top)
    final = int(best.indices[-1, 0])
    return Result(
        "lens",
        {
            "top": Labelled(best.indices.numpy(), ("layer", "rank"), "token id"),
            "probability": Labelled(best.values.numpy(), ("layer", "rank"), "probability"),
            "answer": Labelled(probabilities[:, final].numpy(), ("layer",), "probability"),
        },
        ["The lens reads early layers through the last layer's norm and head, which were not trained for them."],
    )


def _check_top(top: int, vocabulary: int) -> None:
    if not 1 <= top <= vocabulary:
        raise ConfigError(f"top must be 1 to {vocabulary}, the tokens of this model's vocabulary, got {top}.")


def leading_layer(lens: Result) -> int:
    """The first layer after which the final first token leads to the end."""
    leads = lens["top"].values[:, 0] == lens["top"].values[-1, 0]
    behind = np.flatnonzero(~leads)
    return int(behind[-1]) + 1 if len(behind) else 0


@dataclass(frozen=True)
class HeadWords:
    """What one head writes into a row: its words by probability, the most probable first."""

    layer: int
    head: int
    tokens: list[int]
    probability: list[float]


@torch.no_grad()
def value_lens(probe: Probe, reading: Reading, row: int | None = None, top: int = 5) -> list[list[HeadWords]]:
    """softmax(W_u (v O_h)) of one row's own value vector, per layer and head (paper, section 3).

    v is the value vector of `row` (by default the last prompt row) and O_h the head's part of the output projection.
    Heads that share a value vector (grouped queries) still differ in O_h. Raises ConfigError as `logit_lens` does.
    """
    _check_top(top, probe.model.get_output_embeddings().weight.shape[0])
    row = reading.last if row is None else row
    written = []
    for states, module in zip(reading.layers, probe.host.attentions, strict=True):
        heads, size = states.queries.shape[0], states.values.shape[-1]
        value = states.values[:, row].repeat_interleave(heads // states.values.shape[0], dim=0)
        projection: Any = getattr(module, probe.host.adapter.output)
        parts = projection.weight.view(-1, heads, size)  # [d, heads, head_dim]
        written.append(torch.einsum("hk,dhk->hd", value, parts))
    best = [probe.head(rows).float().softmax(-1).topk(top) for rows in torch.split(torch.cat(written), ROWS_AT_ONCE)]
    words = zip(
        [tokens for part in best for tokens in part.indices.tolist()],
        [probability for part in best for probability in part.values.tolist()],
        strict=True,
    )
    return [[HeadWords(layer, head, *next(words)) for head in range(len(rows))] for layer, rows in enumerate(written)]
