"""One pass of several questions about a picture through the model, for learning and for answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from research.training.sequence import PackedBatch
from visipruner.engine.calls import cache_name, cache_of
from visipruner.training import Asked, VisualGates


@dataclass(frozen=True)
class Answers:
    """`loss`: weighted sum over answer tokens; `right`: per question, whether every token of its answer is the most
    likely one, which is when greedy decoding gives that answer."""

    loss: Tensor
    right: list[bool]


def image_inputs(model: Any, features: Tensor) -> dict[str, Any]:
    """What a forward is given in place of pixels the vision tower has seen before."""
    visual = model.model.multi_modal_projector(features.float()[None])
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=list(visual))}}


def run(model: Any, features: Tensor, packed: PackedBatch, prefix: int, gates: VisualGates | None) -> Answers:
    """All questions of one picture: `packed` holds one row, that begins with `prefix` rows for all of them."""
    if gates is not None:
        gates.expect([asked_in(packed, prefix)])
    table = model.get_input_embeddings().weight
    mask = torch.zeros(packed.attention_mask.shape, dtype=table.dtype)
    mask = mask.masked_fill(~packed.attention_mask, torch.finfo(table.dtype).min)
    hidden = model.model(
        input_ids=packed.input_ids,
        attention_mask=mask,
        position_ids=packed.position_ids,
        use_cache=False,
        **image_inputs(model, features),
    ).last_hidden_state
    # Logits only where an answer token is predicted: the vocabulary is most of what is left to compute.
    learnt = packed.labels >= 0
    logits, labels = model.lm_head(hidden[learnt]).float(), packed.labels[learnt]
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    whose = owners(packed, prefix)[learnt[0]]
    hits = logits.argmax(-1) == labels
    right = [bool(hits[whose == number].all()) for number in range(int(whose.max()) + 1)]
    return Answers((losses * packed.weights[learnt]).sum(), right)


def owners(packed: PackedBatch, prefix: int) -> Tensor:
    """`[seq]` long: each row's question, -1 for the prefix. A question begins where positions start again."""
    positions = packed.position_ids[0]
    starts = positions == prefix
    starts[:prefix] = False
    return starts.cumsum(0) - 1


def asked_in(packed: PackedBatch, prefix: int) -> Asked:
    """Where the questions of a packed row end: the rows that predict the first token of an answer."""
    owner, learnt = owners(packed, prefix), packed.labels[0] >= 0
    ends = [int((learnt & (owner == number)).nonzero()[0]) for number in range(int(owner.max()) + 1)]
    return Asked(len(owner) - 1 - torch.tensor(ends), owner)


@torch.no_grad()
def answers_alone(model: Any, features: Tensor, prompt: Tensor, answer: Tensor) -> bool:
    """Whether greedy decoding after `prompt` `[n]` gives the tokens `answer` `[m]`; the prompt is read as it would be
    by `generate`, with whatever is attached to the model at work."""
    first = model(input_ids=prompt[None], use_cache=True, logits_to_keep=1, **image_inputs(model, features))
    given = [first.logits[0, -1].argmax()]
    if len(answer) > 1:
        rest = model(input_ids=answer[None, :-1], use_cache=True, **{cache_name(model): cache_of(first)})
        given += list(rest.logits[0].argmax(-1))
    return bool((torch.stack(given) == answer).all())
