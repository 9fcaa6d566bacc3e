"""What a layer would say: logit lens on any row, and on what single attention heads write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from visipruner.analysis.outcome import ROWS_AT_ONCE
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.results import Labelled, Result
from visipruner.errors import ConfigError


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
