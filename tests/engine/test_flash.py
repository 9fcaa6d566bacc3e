"""Pruning under flash attention, whose kernels take lengths and no mask; the kernel itself is plain torch here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visipruner as vp
from tests.engine.cases import METHODS, WAYS, agrees_with_sdpa
from tests.flash import NAME, use_stand_in, with_flash
from tests.models import llava_inputs, llava_model, prompt, text_model
from visipruner.errors import UnsupportedModelError

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


def test_a_layer_of_plain_rows_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.flash as flash

    calls: list[int] = []
    whole = flash.flash_attn_varlen_func

    def counted(q: Any, k: Any, v: Any, cu_seqlens_q: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(len(cu_seqlens_q) - 1)
        return whole(q, k, v, cu_seqlens_q, *args, **kwargs)

    counted.__signature__ = __import__("inspect").signature(whole)  # type: ignore[attr-defined]
    monkeypatch.setattr(flash, "flash_attn_varlen_func", counted)
    use_stand_in(monkeypatch)
    model = with_flash(llava_model("clip", "llama"))
    with vp.attach(model, vp.FixedSchedule(layers=(0,), keep=(4,))), torch.no_grad():
        model(**llava_inputs(LAYOUTS), use_cache=False)
    assert calls == [len(LAYOUTS)] * 6


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
