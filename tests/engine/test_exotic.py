"""Prompts nobody writes but somebody sends: one visual token, nothing but visual tokens, an image at the very end,
images side by side, padding anywhere. Each example equals the full-length model with the edges cut."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import visipruner as vp
from tests.models import IMAGE_TOKEN, WIDTH, llava_inputs, llava_model, text_model
from tests.oracle import oracle, pruned_edit

PRUNERS: dict[str, vp.Pruner] = {
    "schedule": vp.FixedSchedule(layers=(0, 2), keep=(1, 0)),
    "prefix": vp.VisiPruner(shallow_end=2, filter_layer=2, keep_tokens=1, exit_layer=4),
    "ffn": vp.VisiPruner(shallow_end=2, shallow_visual="ffn", filter_layer=2, keep_tokens=1, exit_layer=4),
}
# Per row: t(ext), v(isual) or - (padding).
Prompts = st.lists(
    st.text("tv-", min_size=1, max_size=9).filter(lambda rows: set(rows) != {"-"}), min_size=1, max_size=3
)


@cache
def _model(attn: str) -> Any:
    return text_model("llama", attn)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
@given(prompts=Prompts, seed=st.integers(0, 3))
@settings(max_examples=15)
@example(prompts=["v"], seed=0)
@example(prompts=["vt"], seed=0)
@example(prompts=["vvvvv"], seed=0)
@example(prompts=["vvv", "tvv", "ttt"], seed=0)
@example(prompts=["-vtv-", "v-v-v", "--t--"], seed=0)
def test_any_prompt_follows_the_oracle(attn: str, pruner: str, prompts: list[str], seed: int) -> None:
    longest = max(map(len, prompts))
    rows = [[*text.ljust(longest, "-")] for text in prompts]
    visual, real = (torch.tensor([[sign in wanted for sign in row] for row in rows]) for wanted in ("v", "tv"))
    if not visual.any():
        return
    embeds = torch.randn(*visual.shape, WIDTH, generator=torch.Generator().manual_seed(seed))
    positions = (real.long().cumsum(-1) - 1).clamp(min=0)
    model = _model(attn)
    with vp.attach(model, PRUNERS[pruner], visual) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds, attention_mask=real.long(), position_ids=positions).logits
    for number, traced in enumerate(handle.trace.examples):
        _check(
            model,
            PRUNERS[pruner],
            traced,
            embeds[number][real[number]],
            visual[number][real[number]],
            logits[number][real[number]],
        )


def _check(model: Any, pruner: vp.Pruner, traced: Any, embeds: Tensor, visual: Tensor, logits: Tensor) -> None:
    held = visual.clone()
    held[-1] = False  # the next token is read from the last row: it stays whatever it is
    assert traced.num_visual == int(held.sum())
    assert not traced.kept[-1]
    assert traced.query_lengths == [int((~held).sum()) + len(kept) for kept in traced.kept[:-1]]
    if traced.num_visual:
        with oracle(model, pruned_edit(held, traced.kept, pruner)), torch.no_grad():
            expected = model(inputs_embeds=embeds[None], use_cache=False).logits[0]
    else:
        with torch.no_grad():
            expected = model(inputs_embeds=embeds[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits[~held], expected[~held], atol=2e-5, rtol=1e-4)


@given(count=st.integers(3600, 4400), before=st.integers(0, 40), keep=st.integers(0, 9))
@settings(max_examples=2)
@example(count=4000, before=5, keep=7)
def test_four_thousand_visual_tokens(count: int, before: int, keep: int) -> None:
    config = copy.deepcopy(_model("sdpa").config)
    config.num_hidden_layers = 2
    torch.manual_seed(0)
    model, pruner = type(_model("sdpa"))(config).eval(), vp.FixedSchedule(layers=(0,), keep=(keep,))
    visual = torch.zeros(before + count + 7, dtype=torch.bool)
    visual[before : before + count] = True
    embeds = torch.randn(1, *visual.shape, WIDTH, generator=torch.Generator().manual_seed(0))
    with vp.attach(model, pruner, visual[None]) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds).logits[0]
    trace = handle.trace[0]
    assert (trace.num_visual, trace.query_lengths) == (count, [before + count + 7, before + keep + 7])
    with oracle(model, pruned_edit(visual, trace.kept, pruner)), torch.no_grad():
        expected = model(inputs_embeds=embeds, use_cache=False).logits[0]
    torch.testing.assert_close(logits[~visual], expected[~visual], atol=2e-5, rtol=1e-4)


@cache
def _llava() -> Any:
    return llava_model()


# Per prompt: 0 is an image, a positive number that many words.
Layouts = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.mark.parametrize("pruner", PRUNERS)
@given(layout=Layouts.filter(lambda prompts: any(0 in parts for parts in prompts)))
@settings(max_examples=8)
@example(layout=[[0]])
@example(layout=[[3, 0]])
@example(layout=[[0, 0]])
@example(layout=[[2, 0, 0], [4], [0]])
def test_any_images_go_on_with_and_without_a_cache(layout: list[list[int]], pruner: str) -> None:
    """At the very end, side by side, alone: each is counted, and decoding agrees."""
    model = _llava()
    inputs = llava_inputs(layout)
    said: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
    with vp.attach(model, PRUNERS[pruner]) as handle:
        cached = model.generate(**inputs, **said)
        held = [example.tokens_per_image for example in handle.trace.examples]
        uncached = model.generate(**inputs, **said, use_cache=False)
    assert torch.equal(cached, uncached)
    expected = [[16] * sum(part == 0 for part in parts) for parts in layout]
    assert held == [
        [*sizes[:-1], 15] if parts[-1] == 0 else sizes for sizes, parts in zip(expected, layout, strict=True)
    ]
