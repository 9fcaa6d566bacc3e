"""Decoder layers on several accelerators: the same numbers as on one, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")

import visipruner as vp
from tests.engine.cases import METHODS, generate
from tests.models import llava_inputs, llava_model
from tests.spread import put, spread

# Where the decoder's layers are; accelerate runs those that it offloads on the first accelerator again.
LAYERS_ON = (1, 2, 3, 3, 1, 2)
PLACES = {
    "model.vision_tower": 3,
    "model.multi_modal_projector": 1,
    "model.language_model.embed_tokens": 1,
    **{f"model.language_model.layers.{layer}": number for layer, number in enumerate(LAYERS_ON)},
    "model.language_model.norm": LAYERS_ON[-1],
    "lm_head": LAYERS_ON[-1],
}
WAYS_TO_LEAVE = ("ffn", "frozen", "pyramiddrop", "sparsevlm")


def _there(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: put(given, 1) for name, given in inputs.items()}


@pytest.mark.parametrize("pruner", METHODS)
def test_layers_may_be_on_several_devices(pruner: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 6], [3, 0, 2]])
    with vp.attach(model, METHODS[pruner]) as handle:
        expected, kept = generate(model, 3, **inputs), handle.trace.kept
    with spread(model, PLACES), vp.attach(model, METHODS[pruner]) as handle:
        output = generate(model, 3, **_there(inputs))
        assert handle.trace.kept == kept
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(torch.stack(output.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("settings", [{"use_cache": False}, {"num_beams": 2}], ids=["no cache", "beams"])
@pytest.mark.parametrize("pruner", WAYS_TO_LEAVE)
def test_other_ways_of_decoding(pruner: str, settings: dict[str, Any]) -> None:
    model, inputs = llava_model(attn="eager"), llava_inputs([[4, 0, 6], [3, 0, 2]])
    with vp.attach(model, METHODS[pruner]):
        expected = generate(model, 3, **inputs, **settings).sequences
    with spread(model, PLACES), vp.attach(model, METHODS[pruner]):
        found = generate(model, 3, **_there(inputs), **settings).sequences
    assert torch.equal(found, expected)


@pytest.mark.parametrize("pruner", ["prefix", "ffn", "fastv", "divprune"])
def test_further_turns_and_questions_about_the_same_image(pruner: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])

    def said(inputs: dict[str, Any]) -> list[torch.Tensor]:
        with vp.attach(model, METHODS[pruner]) as handle, torch.no_grad():
            first = model(**inputs, use_cache=True)
            again = model(**inputs, past_key_values=first.past_key_values).logits
            with handle.image_cache():
                return [first.logits, again, *(generate(model, 3, **inputs).sequences for _ in range(2))]

    expected = said(inputs)
    with spread(model, PLACES):
        found = said(_there(inputs))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("pruner", WAYS_TO_LEAVE)
def test_gradients(pruner: str) -> None:
    model, inputs = llava_model(), llava_inputs([[4, 0, 6]])
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    with vp.attach(model, METHODS[pruner]):
        (expected,) = torch.autograd.grad(model(**inputs).logits[:, -1].sum(), weight)
    with spread(model, PLACES), vp.attach(model, METHODS[pruner]):
        (found,) = torch.autograd.grad(model(**_there(inputs)).logits[:, -1].sum(), weight)
    torch.testing.assert_close(found, expected)  # summed up in another order


def test_tensors_of_unlike_devices_must_not_meet() -> None:
    """What the other tests rest on."""
    layer = torch.nn.Linear(2, 2)
    with spread(layer, {}):
        with pytest.raises(RuntimeError, match=r"devices \[1, 2\] meet in linear"):
            torch.nn.functional.linear(put(torch.ones(1, 2), 2), layer.weight)
        assert layer(put(torch.ones(1, 2), 2)).device == torch.device("cpu", 2), "taken there and back"
