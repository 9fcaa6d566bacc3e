"""What a method is shown on entry to a layer is what the layer then computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.zoo import built, inputs, prompt
from visipruner.contract.pruner import PromptRun
from visipruner.engine.attach import attach
from visipruner.pruners.none import NoPruning


class Looking(NoPruning):
    """Keeps what it saw of the second layer, on entry to it and in it."""

    def start(self) -> PromptRun:
        return _LookingRun()


SEEN: dict[str, Tensor] = {}


class _LookingRun(PromptRun):
    def observes_entry(self, layer: int) -> bool:
        return layer == 1

    def select_entry(self, layer: int, view: Any) -> None:
        SEEN["entry"] = view.attention()

    def observes(self, layer: int) -> bool:
        return layer == 1

    def select(self, layer: int, view: Any) -> None:
        SEEN["layer"] = view.attention[:, view.visual]


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "paligemma2"])
def test_attention_on_entry_is_the_layers(name: str) -> None:
    """Of the last row over the visual tokens alone; logits are large, so that PaliGemma 2's softcap tells."""
    model = copy.deepcopy(built(name, "eager"))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "language_model" in parameter_name and "q_proj" in parameter_name:
                parameter.mul_(8)
        with attach(model, Looking()):
            model(**inputs(name, [prompt(name, [6, 0, 8])]))
    expected = SEEN["layer"] / SEEN["layer"].sum(-1, keepdim=True)
    torch.testing.assert_close(SEEN["entry"], expected, atol=1e-5, rtol=1e-4)
