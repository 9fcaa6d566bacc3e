"""Readings of tiny models, and what an altered run must give, from whole attention maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import llava_inputs, llava_model
from tests.oracle import oracle, softmax
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading

LAYOUTS = {"one image": [5, 0, 6], "image first": [0, 6], "two images": [3, 0, 4, 0, 5], "adjacent": [2, 0, 0, 5]}
Weights = Callable[[int, Tensor], Tensor]


def read(layout: list[int], text: str = "llama", attn: str = "sdpa", **kwargs: Any) -> tuple[Any, Any, Reading]:
    """A tiny LLaVA, its inputs, and their reading (the probe is closed)."""
    model = llava_model(text=text, attn=attn)
    inputs = llava_inputs([layout])
    with Probe(model) as probe:
        return model, inputs, probe.read(inputs, max_new_tokens=4, **kwargs)


def oracle_logprobs(model: Any, inputs: Any, reading: Reading, weights: Weights) -> Tensor:
    """`[t, vocabulary]`: log-probabilities at the dense answer's rows with `weights` edited in every layer."""
    fed = torch.cat([inputs["input_ids"], reading.answer.tokens[None, :-1]], dim=1)
    whole = {"input_ids": fed, "attention_mask": torch.ones_like(fed), "pixel_values": inputs["pixel_values"]}
    with oracle(model, weights), torch.no_grad():
        logits = model(**whole, use_cache=False).logits[0]
    return logits[reading.answer.rows].float().log_softmax(-1)


def edited(layers: Any, src: Tensor, dst: Tensor, how: str, onto: int | None = None) -> Weights:
    """Edges src -> dst (`[n]` bool) changed in `layers`, on whole maps."""

    def weights(layer: int, logits: Tensor) -> Tensor:
        n = logits.shape[-1]
        edge = src[:n, None] & dst[None, :n]
        full = softmax(logits)
        if layer not in layers:
            return full
        if how == "cut":
            return softmax(logits.masked_fill(edge, float("-inf")))
        changed = full.masked_fill(edge, 0)
        if how == "merge":
            changed[..., onto] += (full * edge).sum(-1)
        return changed

    return weights


def kl(dense: Tensor, other: Tensor) -> float:
    return float((dense.exp() * (dense - other)).sum(-1).mean())


NO_LOSS: Any = pytest.approx(0, abs=1e-6)


def near(expected: float) -> Any:
    """Approximately this KL, which must be large enough to be told from none and from another edit's."""
    assert expected > 1e-4, "the edit must do something"
    return pytest.approx(expected, rel=0.02, abs=1e-6)


def resting(visual: Tensor) -> Callable[..., Tensor]:
    """A hook that lets visual rows leave a layer as they entered it."""

    def rest(module: object, args: tuple[Tensor], output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, visual] = args[0][:, visual]
        return changed

    return rest
