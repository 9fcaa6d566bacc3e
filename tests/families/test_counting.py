"""Counted FLOPs are those of the decoder that ran, whatever the family: dense ones, and pruned ones of a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visipruner as vp
from tests.families.test_matrix import PRUNERS
from tests.families.zoo import FAMILIES, built, inputs, prompt
from visipruner.accounting.measured import count_flops
from visipruner.models.shape import ModelShape


@pytest.mark.parametrize("pruner", ["none", "ffn"])
@pytest.mark.parametrize("name", FAMILIES)
def test_counted_flops_agree_with_torch(name: str, pruner: str) -> None:
    model = built(name, "eager")
    decoder: Any = model.get_decoder()
    prepared = inputs(name, [prompt(name, [20, 0, 30, 0, 40])])
    with (
        vp.attach(model, PRUNERS.get(pruner, vp.NoPruning())) as handle,
        torch.no_grad(),
        count_flops(decoder) as count,
    ):
        model(**prepared)
    # Rotary angles are products too; in models this narrow they show, and a pruner's score is counted a little low.
    assert count.flops == pytest.approx(handle.trace.flops(), rel=0.02)


def test_routers_are_found_whatever_their_experts_are_called() -> None:
    """Their work is less than the comparison with torch would show."""
    experts = {name: ModelShape.from_config(family.config()).num_experts for name, family in FAMILIES.items()}
    routed = dict.fromkeys(("llava-mixtral", "llava-qwen3-moe", "qwen3-vl-moe", "glm4v-moe"), 4)
    assert {name: count for name, count in experts.items() if count} == routed
