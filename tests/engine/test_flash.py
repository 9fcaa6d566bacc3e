"""Pruning under flash attention, whose kernels take lengths and no mask; the kernel itself is plain torch here."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import visipruner as vp
from tests import flash
from tests.engine.cases import METHODS, WAYS, agrees_with_sdpa, two_turns
from tests.flash import NAME, use_stand_in, with_flash
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from visipruner.errors import UnsupportedModelError
from visipruner.pruners.registry import method_class

LAYOUTS = [[3, 0, 9], [12], [5, 0, 2, 0, 4], [0, 6]]
REFUSED = {"ffn", "frozen"}  # a sink with a bias; visual rows that only give keys
RUNS = sorted(METHODS.keys() - REFUSED)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    use_stand_in(monkeypatch)


@pytest.mark.parametrize("pruner", RUNS)
def test_answers_are_those_of_sdpa(pruner: str) -> None:
    agrees_with_sdpa(with_flash, METHODS[pruner], llava_inputs([[5, 0, 2, 0, 4]]))


@pytest.mark.parametrize("pruner", RUNS)
def test_unlike_examples_of_a_batch_run_in_one_call(pruner: str) -> None:
    agrees_with_sdpa(with_flash, METHODS[pruner], llava_inputs(LAYOUTS))


@pytest.mark.parametrize("pruner", sorted(WAYS.keys() - REFUSED))
def test_without_a_cache(pruner: str) -> None:
    agrees_with_sdpa(with_flash, METHODS[pruner], llava_inputs(LAYOUTS[:2]), use_cache=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sequences each call of the kernel has."""
    found: list[int] = []
    whole = flash.flash_attn_varlen_func

    @functools.wraps(whole)  # transformers reads the kernel's signature
    def counted(q: Any, k: Any, v: Any, cu_seqlens_q: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(len(cu_seqlens_q) - 1)
        return whole(q, k, v, cu_seqlens_q, *args, **kwargs)

    monkeypatch.setattr(flash, "flash_attn_varlen_func", counted)
    use_stand_in(monkeypatch)
    return found


def test_a_layer_of_plain_rows_is_one_call(calls: list[int]) -> None:
    model = with_flash(llava_model("clip", "llama"))
    with vp.attach(model, vp.FixedSchedule(layers=(0,), keep=(4,))), torch.no_grad():
        model(**llava_inputs(LAYOUTS), use_cache=False)
    assert calls == [len(LAYOUTS)] * LAYERS


def test_a_shallow_layer_is_two_calls_for_all_examples(calls: list[int]) -> None:
    """Text rows of all examples, and all images that text comes before: one, none, two and none."""
    model = with_flash(llava_model("clip", "llama"))
    with vp.attach(model, METHODS["shallow-only"]), torch.no_grad():
        model(**llava_inputs(LAYOUTS), use_cache=False)
    assert calls == [len(LAYOUTS), 3] * 3 + [len(LAYOUTS)] * (LAYERS - 3)


@pytest.mark.parametrize("pruner", ["schedule", "prefix", "visipruner-reference"])
def test_a_second_turn_of_a_batch_runs_in_these_calls_too(pruner: str, calls: list[int]) -> None:
    """Examples of different lengths with new images, behind older keys that are as unlike."""
    method = method_class(pruner).for_depth(LAYERS) if pruner not in METHODS else METHODS[pruner]
    turns = llava_inputs([[4, 0, 7], [3, 0, 2]]), llava_inputs([[2, 0, 5], [3, 0, 6]], seed=7)
    plain, other = llava_model("clip", "llama"), with_flash(llava_model("clip", "llama"))
    with vp.attach(plain, method) as handle, torch.no_grad():
        expected, kept = two_turns(plain, *turns)[0], handle.trace.kept
    with vp.attach(other, method) as handle, torch.no_grad():
        logits = two_turns(other, *turns)[0]
        assert handle.trace.kept == kept
    real = turns[1]["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=2e-5, rtol=1e-4)
    assert min(calls) >= 2


@pytest.mark.parametrize("pruner", sorted(REFUSED))
def test_what_takes_a_mask_is_refused_in_a_sentence(pruner: str) -> None:
    model = with_flash(llava_model("clip", "llama"))
    refused = pytest.raises(UnsupportedModelError, match="Flash attention takes no mask")
    with vp.attach(model, METHODS[pruner]), torch.no_grad(), refused:
        model(**llava_inputs([[5, 0, 4]]))


def test_a_sliding_window_shorter_than_the_prompt_is_refused() -> None:
    model = with_flash(text_model("mistral-sliding"))
    embeds, mask = prompt()
    refused = pytest.raises(UnsupportedModelError, match="sliding window")
    with vp.attach(model, vp.FixedSchedule(layers=(1,), keep=(3,)), mask), torch.no_grad(), refused:
        model(inputs_embeds=embeds)


def test_the_model_is_given_back() -> None:
    model = with_flash(llava_model("clip", "llama"))
    inputs = llava_inputs(LAYOUTS)
    with torch.no_grad():
        before = model(**inputs).logits
        with vp.attach(model, vp.NoPruning()):
            assert torch.equal(model(**inputs).logits, before)
        with vp.attach(model, vp.FastV(layer=2, keep_ratio=0.5)):
            assert not torch.equal(model(**inputs).logits, before)
        assert torch.equal(model(**inputs).logits, before)
    assert model.config.get_text_config()._attn_implementation == NAME
