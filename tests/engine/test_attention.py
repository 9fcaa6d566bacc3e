"""Attention functions of a user's own, registered with transformers around one of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

import visipruner as vp
from tests.engine.cases import METHODS, WAYS, generate
from tests.models import llava_inputs, llava_model

ROUND = {"sdpa": (sdpa_attention_forward, sdpa_mask), "eager": (eager_attention_forward, eager_mask)}


@pytest.fixture(params=ROUND)
def wrapped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """An implementation of transformers and the name of a function that only calls it."""
    inner, mask = ROUND[request.param]

    def outer(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        return inner(*args, **kwargs)

    name = f"test_round_{request.param}"
    AttentionInterface.register(name, outer)
    AttentionMaskInterface.register(name, mask)
    return request.param, name


@pytest.mark.parametrize("pruner", WAYS)
def test_a_function_around_another_prunes_as_that_one(pruner: str, wrapped: tuple[str, str]) -> None:
    inner, outer = wrapped
    model, inputs = llava_model(attn=inner), llava_inputs([[4, 0, 6], [3, 0, 2]])
    with vp.attach(model, METHODS[pruner]) as handle:
        expected, kept = generate(model, 3, **inputs).logits, handle.trace.kept
    model.set_attn_implementation({"text_config": outer})
    with vp.attach(model, METHODS[pruner]) as handle:
        logits = generate(model, 3, **inputs).logits
        assert handle.trace.kept == kept
    assert torch.equal(torch.stack(logits), torch.stack(expected))
