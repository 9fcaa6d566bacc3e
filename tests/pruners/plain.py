"""What the plain model computes, for methods to be written down once more from their papers: loops over whole maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import visipruner as vp
from tests.oracle import PrunedEdit, oracle


def kept_by(model: Any, pruner: vp.Pruner, embeds: Tensor, mask: Tensor) -> list[list[int]]:
    """The visual tokens that enter each layer, and those chosen at the last."""
    with vp.attach(model, pruner, mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    kept: list[list[int]] = handle.trace[0].kept
    return kept


def logits_of(
    model: Any, embeds: Tensor, mask: Tensor, kept: list[list[int]], pruner: vp.Pruner | None = None
) -> list[Tensor]:
    """Per layer `[heads, n, n]` attention logits of the full-length model, dropped tokens seen by nobody and rows where
    `pruner` places them."""
    seen: list[Tensor] = []

    class Remembering(PrunedEdit):
        def __call__(self, layer: int, logits: Tensor) -> Tensor:
            seen.append(logits)
            return super().__call__(layer, logits)

    with oracle(model, Remembering(mask[0], kept, pruner)), torch.no_grad():
        model(inputs_embeds=embeds, use_cache=False)
    return seen


def attention_of(model: Any, embeds: Tensor) -> list[Tensor]:
    """Per layer `[heads, n, n]` softmax weights, by transformers' own eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [part[0] for part in model(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions]


def values_of(model: Any, embeds: Tensor) -> list[Tensor]:
    """Per layer `[kv_heads, n, head_dim]` values of a Llama."""
    seen: list[Tensor] = []
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _args, output: seen.append(output[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(inputs_embeds=embeds, use_cache=False)
    for hook in hooks:
        hook.remove()
    heads = model.config.num_key_value_heads
    return [part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in seen]


def largest(scores: list[float], count: int) -> list[int]:
    """Ascending positions of the largest scores."""
    return sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count])
