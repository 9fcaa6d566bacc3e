"""Pruning under flex attention, which is told by blocks of rows and keys.

Most tests run torch's own function uncompiled, which takes the same blocks; one compiles it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import visipruner as vp
from tests.engine.cases import METHODS, WAYS, agrees_with_sdpa
from tests.models import llava_inputs, llava_model, prompt, text_model
from tests.oracle import oracle, pruned_edit
from visipruner.contract.pruner import PromptRun
from visipruner.contract.training_run import TrainingPruner, TrainingRun
from visipruner.errors import UnsupportedModelError

LAYOUTS = [[3, 0, 9], [12], [5, 0, 2, 0, 4], [0, 6]]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def _with_flex(model: Any) -> Any:
    model.set_attn_implementation({"text_config": "flex_attention"})
    return model


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pruner", METHODS)
def test_answers_are_those_of_sdpa(pruner: str) -> None:
    agrees_with_sdpa(_with_flex, METHODS[pruner], llava_inputs([[5, 0, 2, 0, 4]]))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pruner", WAYS)
def test_unlike_examples_of_a_batch(pruner: str) -> None:
    agrees_with_sdpa(_with_flex, METHODS[pruner], llava_inputs(LAYOUTS))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pruner", ["schedule", "prefix", "ffn"])
def test_a_sliding_window(pruner: str) -> None:
    agrees_with_sdpa(_with_flex, METHODS[pruner], llava_inputs(LAYOUTS[:1]), "mistral-sliding")


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("pruner", ["schedule", "prefix", "frozen"])
def test_the_prompt_is_the_full_model_with_edges_cut(pruner: str) -> None:
    """Not against our other kernels, but against the stock model with a mask of the dropped edges."""
    model = text_model("llama", "flex_attention")
    embeds, mask = prompt()
    with vp.attach(model, METHODS[pruner], mask) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds).logits
    stock = text_model("llama")
    with oracle(stock, pruned_edit(mask[0], handle.trace[0].kept, METHODS[pruner])), torch.no_grad():
        expected = stock(inputs_embeds=embeds, use_cache=False).logits
    torch.testing.assert_close(logits[~mask], expected[~mask], atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_keeping_everything_is_the_plain_model_and_the_model_is_given_back() -> None:
    model, inputs = _with_flex(llava_model("clip", "llama")), llava_inputs(LAYOUTS)
    with torch.no_grad():
        before = model(**inputs).logits
        with vp.attach(model, vp.NoPruning()):
            assert torch.equal(model(**inputs).logits, before)
        with vp.attach(model, vp.FastV(layer=2, keep_ratio=0.5)):
            assert not torch.equal(model(**inputs).logits, before)
        assert torch.equal(model(**inputs).logits, before)
    assert model.config.get_text_config()._attn_implementation == "flex_attention"


class _Biased(TrainingRun):
    def biases(self, layer: int) -> bool:
        return True


@dataclass(frozen=True, kw_only=True, eq=False)
class _Learns(TrainingPruner):
    name = "learns"

    def start(self) -> PromptRun:
        return _Biased()


@pytest.mark.usefixtures("uncompiled")
def test_learning_to_prune_is_refused_in_a_sentence() -> None:
    model = _with_flex(llava_model("clip", "llama"))
    refused = pytest.raises(UnsupportedModelError, match=r"learns to prune.*attn_implementation='sdpa'")
    with vp.attach(model, _Learns()), torch.no_grad(), refused:
        model(**llava_inputs([[5, 0, 4]]))


def test_the_compiled_kernel() -> None:
    """As users run it. Compiling takes a C++ compiler."""
    if torch._inductor.cpp_builder.get_cpp_compiler() is None:
        pytest.skip("no C++ compiler")
    agrees_with_sdpa(_with_flex, METHODS["schedule"], llava_inputs([[5, 0, 2, 0, 4]]))
