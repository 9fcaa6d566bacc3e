"""Invariants 1, 2, 5 and 6: what the engine computes with rows gone is what the full-length model computes with the
edges to them cut, in the prompt, while decoding with a cache, and without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

import visipruner as vp
from tests.engine.cases import METHODS, PRUNERS, SELECTS, cells, generate
from tests.models import TEXT_CONFIGS, llava_inputs, llava_model, prompt, text_model
from tests.oracle import oracle, pruned_edit

STEPS = 5
TOLERANCE = 2e-5
_LLAVAS = [("clip", "llama"), ("siglip", "qwen2"), ("dinov2", "mistral-sliding")]
_ALL = [(*models, attn) for models in _LLAVAS for attn in ("sdpa", "eager")]
_FEW = [("clip", "llama", "sdpa"), ("siglip", "qwen2", "sdpa"), ("dinov2", "mistral-sliding", "eager")]


def _oracle_logits(model: Any, embeds: Tensor, tokens: Tensor, edit: Any) -> Tensor:
    """Logits of the last prompt row and of every generated token but the last, by one full forward."""
    generated = model.get_input_embeddings()(tokens)
    with oracle(model, edit), torch.no_grad():
        logits = model(inputs_embeds=torch.cat([embeds, generated[:, :-1]], 1), use_cache=False).logits
    return logits[0, embeds.shape[1] - 1 :]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("kind", TEXT_CONFIGS)
def test_decoding_equals_the_full_model_with_edges_cut(kind: str, pruner: str, attn: str) -> None:
    model = text_model(kind, attn)
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        output = generate(model, STEPS, inputs_embeds=embeds)
    trace = handle.trace[0]
    assert len(trace.kept[-1]) < trace.num_visual or pruner == "shallow-only", "the case must prune to test anything"
    tokens = output.sequences[:, -STEPS:]
    expected = _oracle_logits(model, embeds, tokens, pruned_edit(mask[0], trace.kept, PRUNERS[pruner]))
    torch.testing.assert_close(torch.stack(output.logits, 1)[0], expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("kind", ["llama", "mistral-sliding", "qwen3"])
def test_without_a_cache_the_prompts_selections_hold(kind: str, pruner: str, attn: str) -> None:
    model = text_model(kind, attn)
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        cached = generate(model, STEPS, inputs_embeds=embeds)
        kept = handle.trace.kept
        uncached = generate(model, STEPS, inputs_embeds=embeds, use_cache=False)
        assert handle.trace.kept == kept
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize(("pruner", "vision", "text", "attn"), cells(_ALL, _FEW, SELECTS))
def test_llava_decoding_equals_the_full_model_with_edges_cut(vision: str, text: str, pruner: str, attn: str) -> None:
    model = llava_model(vision, text, attn)
    inputs = llava_inputs([[4, 0, 7]])
    with vp.attach(model, SELECTS[pruner]) as handle:
        output = generate(model, STEPS, **inputs)
    trace = handle.trace[0]
    mask = inputs["input_ids"][0] == model.config.image_token_id
    tokens = output.sequences[:, -STEPS:]
    full = torch.cat([inputs["input_ids"], tokens[:, :-1]], 1)
    with oracle(model, pruned_edit(mask, trace.kept, SELECTS[pruner])), torch.no_grad():
        expected = model(input_ids=full, pixel_values=inputs["pixel_values"], use_cache=False).logits
    torch.testing.assert_close(
        torch.stack(output.logits, 1)[0], expected[0, len(mask) - 1 :], atol=TOLERANCE, rtol=1e-4
    )


@pytest.mark.parametrize(("pruner", "vision", "text", "attn"), cells(_FEW, [_FEW[0], _FEW[2]]))
def test_llava_without_a_cache_the_prompts_selections_hold(vision: str, text: str, pruner: str, attn: str) -> None:
    model = llava_model(vision, text, attn)
    inputs = llava_inputs([[4, 0, 7]])
    with vp.attach(model, METHODS[pruner]) as handle:
        cached = generate(model, STEPS, **inputs)
        kept = handle.trace.kept
        uncached = generate(model, STEPS, **inputs, use_cache=False)
        assert handle.trace.kept == kept
    assert len(kept[0][-1]) < 16 or pruner == "shallow-only"
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_all_logits_of_text_rows_survive(pruner: str, attn: str) -> None:
    model = text_model("llama", attn)
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds).logits
    with oracle(model, pruned_edit(mask[0], handle.trace[0].kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(inputs_embeds=embeds, use_cache=False).logits
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits[~mask], expected[~mask], atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("kind", ["llama", "mistral-sliding"])
def test_the_cache_holds_the_rows_that_ran(kind: str, pruner: str) -> None:
    model = text_model(kind)
    embeds, mask = prompt()
    with vp.attach(model, PRUNERS[pruner], mask) as handle:
        output = generate(model, STEPS, inputs_embeds=embeds)
    trace = handle.trace[0]
    cache = output.past_key_values
    assert cache.get_seq_length() == embeds.shape[1] + STEPS - 1
    text_rows = int((~mask).sum())
    for layer, kept in enumerate(trace.kept[:-1]):
        rests = PRUNERS[pruner].routing(layer).freezes_visual
        assert trace.query_lengths[layer] == text_rows + (0 if rests else len(kept))
        held = cache.layers[layer].keys.shape[-2]
        if isinstance(cache.layers[layer], DynamicSlidingWindowLayer):  # untouched by pruning: the host's own eviction
            assert (held, trace.key_lengths[layer]) == (cache.layers[layer].sliding_window - 1, embeds.shape[1])
        else:
            assert held == trace.key_lengths[layer] + STEPS - 1, layer


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", ["schedule", "middle-deep", "budget"])
def test_bfloat16_follows_the_oracle(pruner: str, attn: str) -> None:
    model = text_model("llama", attn, torch.bfloat16)
    embeds, mask = prompt()
    embeds = embeds.bfloat16()
    with vp.attach(model, PRUNERS[pruner], mask) as handle, torch.no_grad():
        logits = model(inputs_embeds=embeds).logits
    with oracle(model, pruned_edit(mask[0], handle.trace[0].kept, PRUNERS[pruner])), torch.no_grad():
        expected = model(inputs_embeds=embeds, use_cache=False).logits
    # bfloat16 keeps 8 bits; over six layers with peaked attention that leaves about two digits.
    scale = expected.float().abs().max()
    assert ((logits - expected).float()[~mask].abs().max() / scale) < 0.05
