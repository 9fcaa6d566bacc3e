"""Bugs of the methods' public code and ports, each on a case where having it would show."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import visipruner as vp
from tests.engine.cases import METHODS
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import attention_of, kept_by
from visipruner.pruners.cdpruner import CDPruner, greedy_map
from visipruner.pruners.dart import Dart
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.fitprune import FitPrune
from visipruner.pruners.random import RandomPruner

# To what tokens hold.
BLIND = {"frozen", "random", "uniform", "pool", "schedule", "schedule-some-stay", "shallow-only", "vtw"}
CHOOSES = sorted(set(METHODS) - BLIND)


@cache
def _model() -> Any:
    return llava_model()


def _kept(pruner: vp.Pruner, inputs: dict[str, Any]) -> list[list[list[int]]]:
    with vp.attach(_model(), pruner) as handle, torch.no_grad():
        _model()(**inputs)
    kept: list[list[list[int]]] = handle.trace.kept
    return kept


def _alone(inputs: dict[str, Any], example: int) -> dict[str, Any]:
    real = inputs["attention_mask"][example].bool()
    ids, pixels = inputs["input_ids"][example : example + 1, real], inputs["pixel_values"][example : example + 1]
    return {"input_ids": ids, "pixel_values": pixels}


@pytest.mark.parametrize("method", CHOOSES)
def test_no_example_decides_for_another(method: str) -> None:
    """Many take `[0]` of the batch for all of it."""
    inputs = llava_inputs([[4, 0, 7], [4, 0, 7], [4, 0, 7]])
    kept = _kept(METHODS[method], inputs)
    assert kept == [_kept(METHODS[method], _alone(inputs, example))[0] for example in range(3)]
    assert kept[0] != kept[1] or kept[0] != kept[2], "the examples must differ for this to test anything"


def test_relevance_is_not_normalised_over_the_batch() -> None:
    """CDPruner's code takes the least and the largest of all examples together."""
    model, mask = text_model("llama"), prompt()[1]
    near = prompt(seed=1)[0]
    far = near.clone()
    far[:, 5:21] += 3 * far[:, 21:].mean(1, keepdim=True)  # every token much nearer to the words
    pruner = CDPruner(keep_tokens=5, relevance="words")
    with vp.attach(model, pruner, mask.expand(2, -1)) as handle, torch.no_grad():
        model(inputs_embeds=torch.cat([near, far]))
    assert handle.trace.kept == [kept_by(model, pruner, embeds, mask) for embeds in (near, far)]
    unit = torch.nn.functional.normalize(torch.cat([near, far])[:, 5:21].double(), dim=-1)
    words = torch.nn.functional.normalize(torch.cat([near, far])[:, 21:].double().mean(1), dim=-1)
    likeness = (unit @ words[..., None])[..., 0]
    together = (likeness - likeness.min()) / (likeness.max() - likeness.min())
    apart = [(own - own.min()) / (own.max() - own.min()) for own in likeness]
    chosen = [[greedy_map([unit[i] * r[i][:, None]], [5])[0].tolist() for i in (0, 1)] for r in (together, apart)]
    assert chosen[1] == [kept[0] for kept in handle.trace.kept]
    assert chosen[0] != chosen[1], "the bug must show in this case for this to test anything"


@pytest.mark.parametrize("method", CHOOSES)
@pytest.mark.parametrize("layout", [[1, 0, 3], [23, 0, 3], [2, 0, 19, 0, 2], [0, 5]])
def test_the_image_is_found_wherever_it_is(method: str, layout: list[int]) -> None:
    """Starts (5, 35) and lengths (576) are written into many ports: text would leave, and image tokens stay."""
    inputs = llava_inputs([layout])
    text = int((inputs["input_ids"] != _model().config.image_token_id).sum())
    with vp.attach(_model(), METHODS[method]) as handle, torch.no_grad():
        cached = _model()(**inputs, use_cache=True)
        trace = handle.trace[0]
    assert trace.num_visual == 16 * layout.count(0)
    assert trace.query_lengths == [text + len(kept) for kept in trace.kept[:-1]]
    assert len(trace.kept[-1]) < trace.num_visual
    assert torch.isfinite(cached.logits[0, -1]).all()
    assert cached.past_key_values.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("pruner", [DivPrune(keep_tokens=12), RandomPruner(keep_tokens=12)])
def test_a_second_image_is_chosen_from_too(pruner: vp.Pruner) -> None:
    """DivPrune's and HiPrune's code read `[0]` of the images."""
    [kept] = _kept(pruner, llava_inputs([[2, 0, 2, 0, 4]]))
    assert min(kept[0]) < 16 <= max(kept[0])


def test_fitprune_keeps_the_largest() -> None:
    """A port keeps the smallest scores (an ascending sort, cut at the front)."""
    model = text_model("llama")
    embeds, mask = prompt()
    kept = kept_by(model, FitPrune(remove=(0.5, *[0.0] * (LAYERS - 1))), embeds, mask)[1]
    weights = attention_of(model, embeds)[0]
    cross, own = weights[:, 21:, 5:21].amax(0).sum(0), weights[:, 5:21, 5:21].amax(0).sum(0)
    order = (cross * own).argsort(descending=True).tolist()
    assert kept == sorted(order[:8]) != sorted(order[8:])


def _kept_padded(pruner: vp.Pruner, embeds: torch.Tensor, mask: torch.Tensor, padding: int) -> list[list[int]]:
    """The tokens kept where the prompt is padded on the left, and nobody says which positions its rows have."""
    padded = torch.nn.functional.pad(embeds, (0, 0, padding, 0), value=1.0)
    real = torch.nn.functional.pad(torch.ones_like(mask, dtype=torch.long), (padding, 0))
    model = text_model("llama")
    with vp.attach(model, pruner, torch.nn.functional.pad(mask, (padding, 0))) as handle, torch.no_grad():
        model(inputs_embeds=padded, attention_mask=real)
    kept: list[list[int]] = handle.trace[0].kept
    return kept


@pytest.mark.parametrize("method", CHOOSES)
def test_padding_without_position_ids_changes_nothing(method: str) -> None:
    """The model then counts the padding, and RoPE turns every single key by it."""
    if METHODS[method].vision_layers(24):
        pytest.skip("text decoders have no vision tower")
    assert _kept_padded(METHODS[method], *prompt(), 9) == kept_by(text_model("llama"), METHODS[method], *prompt())


@pytest.mark.parametrize("padding", [1, 9, 40])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_darts_pivots_do_not_depend_on_padding(layer: int, padding: int) -> None:
    pruner, (embeds, mask) = Dart(layer=layer, keep_tokens=20, pivot_image=2, pivot_text=2), prompt(visual=64, after=30)
    assert _kept_padded(pruner, embeds, mask, padding) == kept_by(text_model("llama"), pruner, embeds, mask)
