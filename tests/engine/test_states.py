"""Layers that pass a state from row to row: to them, a dropped row was never there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, DynamicCache, LlavaConfig

import visipruner as vp
from tools.families.types import default_config
from visipruner.accounting import cache_bytes, count_flops, dense_macs, prompt_macs
from visipruner.adapters.generic import adapter_of
from visipruner.analysis.probe import Probe
from visipruner.checking.checks import longer
from visipruner.checking.prompts import Asked, TinyPrompts
from visipruner.checking.subject import Subject
from visipruner.checking.tiny import shrunk_model
from visipruner.errors import UnsupportedModelError, VisiPrunerError
from visipruner.models.shape import ModelShape
from visipruner.pruners import registry
from visipruner.pruners.composed import Composed
from visipruner.pruners.feather import Feather
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.shortv import ShortV
from visipruner.pruners.vtw import VTW
from visipruner.training import align

# Layers: a state, attention, a state, attention. Of linear attention with a convolution in it, and of convolutions.
KINDS = ("qwen3_5", "lfm2_vl")
ONE, OTHER = Asked((1,), 7), Asked((2,), 11)
each_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def subject(kind: str) -> Subject:
    model = shrunk_model(default_config(kind))
    return Subject(model, adapter_of(model), TinyPrompts(model))


def schedule(after: int, keep: int = 4) -> vp.FixedSchedule:
    return vp.FixedSchedule(layers=(after,), keep=(keep,))


def states(cache: Any, layer: int) -> list[Tensor]:
    held = cache.layers[layer]
    return [state for kept in (held.conv_states, held.recurrent_states) for state in kept.values() if state is not None]


# ---- the sequence is shorter ----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_no_state_leaks_from_one_prompt_of_a_batch_into_the_next(kind: str, side: Any) -> None:
    """Each example's state is the one that it has alone, also after padding on the right, which stock models run on."""
    tried = subject(kind)
    asked = [ONE, OTHER, Asked((3, 4), 5)]
    with tried.attach(schedule(0, 5)):
        together = tried.model(**tried.prompts.inputs(asked, side), use_cache=True).cache
        for example, each in enumerate(asked):
            alone = tried.model(**tried.prompts.inputs([each]), use_cache=True).cache
            for mine, expected in zip(states(together, 2), states(alone, 2), strict=True):
                assert mine[example].numel()
                torch.testing.assert_close(mine[example], expected[0], atol=1e-4, rtol=1e-4)


@each_kind
@torch.no_grad()
def test_a_state_is_that_of_the_shortened_sequence(kind: str) -> None:
    """The layer alone, given the rows that are left."""
    tried = subject(kind)
    mixer = tried.host.attentions[2]
    given: list[Tensor] = []
    hook = mixer.register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
    )
    inputs = tried.prompts.inputs([ONE])
    with hook, tried.attach(schedule(1)):
        held = tried.model(**inputs, use_cache=True).cache
    assert given[0].shape[1] == inputs["input_ids"].shape[1] - 12 + 4
    fresh = DynamicCache(config=tried.host.decoder.config)
    mixer(hidden_states=given[0], cache=fresh, attention_mask=None)
    for mine, expected in zip(states(held, 2), states(fresh, 2), strict=True):
        assert torch.equal(mine, expected)
    assert len(states(held, 2)) == (2 if kind == "qwen3_5" else 1)


@each_kind
@torch.no_grad()
def test_late_rows_pass_no_state_before_they_come(kind: str) -> None:
    tried = subject(kind)
    inputs = tried.prompts.inputs([ONE])
    visual = tried.visual(inputs)[0]
    late = vp.VisiPruner(stages=("shallow",), shallow_visual="late", shallow_end=2)
    given: list[Tensor] = []
    hooks = [
        tried.host.attentions[layer].register_forward_pre_hook(
            lambda _, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True
        )
        for layer in (0, 2)
    ]
    with hooks[0], hooks[1], tried.attach(late):
        got = tried.logits(inputs)[0, ~visual]
    assert [rows.shape[1] for rows in given] == [int((~visual).sum()), len(visual)]
    assert (got - tried.logits(inputs)[0, ~visual]).abs().max() > 1e-3


# ---- after the prompt -----------------------------------------------------------------------------------------------


@each_kind
def test_beams_with_a_cache_are_beams_without(kind: str) -> None:
    tried = subject(kind)
    inputs = tried.prompts.inputs([ONE, OTHER])
    more = {"num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "suppress_tokens": tried.prompts.suppressed()}
    plain = tried.model.generate(**inputs, **more, do_sample=False)
    with tried.attach(schedule(0, 2)):
        cached, uncached = (
            tried.model.generate(**inputs, **more, do_sample=False, use_cache=use) for use in (True, False)
        )
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)


@torch.no_grad()
def test_a_further_image_goes_on_from_the_states() -> None:
    """LFM2 counts positions by itself, so its turns can be read in one go, too."""
    tried = subject("lfm2_vl")
    first, second = tried.prompts.inputs([ONE]), tried.prompts.inputs([OTHER])
    whole = longer(first, second["input_ids"])
    whole["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    with tried.attach(schedule(0)) as handle:
        held = tried.model(**first, use_cache=True).cache
        kept = handle.trace[0].kept
        got = tried.model(**{**second, "attention_mask": whole["attention_mask"]}, cache=held).logits[0]
        both = [[*one, *(12 + token for token in other)] for one, other in zip(kept, handle.trace[0].kept, strict=True)]
    with tried.cutting(whole, both):
        expected = tried.logits(whole)[0, -got.shape[0] :]
    text = ~tried.visual(second)[0]
    assert (got - expected)[text].abs().max() < 1e-4
    assert (got - tried.logits(whole)[0, -got.shape[0] :])[text].abs().max() > 1e-2


@each_kind
@torch.no_grad()
def test_a_further_image_of_unlike_prompts_is_an_error(kind: str) -> None:
    """Padding between the old rows and the new ones would change the states."""
    tried = subject(kind)
    first, second = (tried.prompts.inputs([ONE, each]) for each in (Asked((3,), 7), OTHER))
    with tried.attach(schedule(0)):
        held = tried.model(**first, use_cache=True).cache
        mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
        with pytest.raises(UnsupportedModelError, match="pass them one by one"):
            tried.model(**{**second, "attention_mask": mask}, cache=held)


@each_kind
@torch.no_grad()
def test_a_state_cannot_be_cropped_and_keys_refuse_it_first(kind: str) -> None:
    tried = subject(kind)
    with tried.attach(schedule(1)):
        held = tried.model(**tried.prompts.inputs([ONE]), use_cache=True).cache
        with pytest.raises(RuntimeError, match="does not track past states"):
            held.crop(-1)
        with pytest.raises(VisiPrunerError, match="cannot be cropped"):
            held.layers[1].crop(-1)


@each_kind
def test_gradient_checkpointing_repeats_one_prompt_and_refuses_several(kind: str) -> None:
    tried = subject(kind)
    one, two = tried.prompts.inputs([ONE]), tried.prompts.inputs([ONE, OTHER])
    weight = next(tried.host.attentions[2].parameters())
    found = []
    tried.model.train()
    try:
        for repeats in (False, True):
            if repeats:
                tried.model.activation_checkpointing_enable()
            with tried.attach(schedule(0)):
                tried.model(**one, use_cache=False).logits[0, -1].logsumexp(-1).backward()
                found.append(weight.grad)
                weight.grad = None
                if repeats:
                    with pytest.raises(UnsupportedModelError, match="pass one prompt at a time, or turn it off"):
                        tried.model(**two, use_cache=False)
    finally:
        tried.model.activation_checkpointing_disable()
        tried.model.zero_grad()
        tried.model.eval()
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


# ---- methods that look at attention ---------------------------------------------------------------------------------


@each_kind
def test_a_look_at_a_state_waits_for_the_next_attention(kind: str) -> None:
    tried = subject(kind)
    inputs = tried.prompts.inputs([ONE, OTHER])
    with tried.attach(vp.FastV(layer=2)) as handle:
        expected, meant = tried.logits(inputs), handle.trace[0]
    with tried.attach(vp.FastV(layer=1)) as handle:
        assert torch.equal(tried.logits(inputs), expected)
        assert handle.trace[0].kept == meant.kept
        assert [len(kept) for kept in handle.trace[0].kept] == [12, 12, 6, 6, 6]
        assert handle.trace[0].trigger_layer == meant.trigger_layer == 1
    filtered = {"stages": ("middle",), "keep_tokens": 5}
    found = []
    for layer in (0, 1):
        with tried.attach(vp.VisiPruner(filter_layer=layer, **filtered)) as handle:
            tried.logits(inputs)
            found.append((handle.trace[0].kept, handle.trace[0].trigger_layer))
    assert found[0] == found[1]
    assert found[0][1] == 1


def test_layers_without_what_the_adapter_calls_their_attention_are_refused() -> None:
    model = shrunk_model(default_config("aya_vision"))
    with pytest.raises(UnsupportedModelError, match="has no attention called 'attn'; name it in the adapter"):
        vp.attach(model, vp.NoPruning(), adapter=replace(adapter_of(model), attention="attn"))


@each_kind
def test_a_method_that_looks_at_nothing_waits_for_nothing(kind: str) -> None:
    tried = subject(kind)
    for after in range(4):
        with tried.attach(schedule(after)) as handle:
            tried.logits(tried.prompts.inputs([ONE]))
            assert [len(kept) for kept in handle.trace[0].kept] == [12] * (after + 1) + [4] * (4 - after)


REFUSED: dict[str, tuple[vp.Pruner, str]] = {
    "edges": (
        vp.VisiPruner.for_depth(4),
        "changes attention edges, of which layer 0 of .* has none.*without 'shallow'",
    ),
    "frozen": (ShortV(layers=(2,)), "changes attention edges, of which layer 2 "),
    "a pair of looks": (registry.method_class("dart").for_depth(4), r"Layer 0 of .* one of layers 1, 3, or a method"),
    "two looks": (Composed(parts=(vp.FastV(layer=1), schedule(0))), "Layer 0 of .* has no attention"),
}


@each_kind
@pytest.mark.parametrize("case", REFUSED)
def test_what_a_layer_without_attention_cannot_do_is_refused(kind: str, case: str) -> None:
    pruner, words = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=words):
        subject(kind).attach(pruner)


@each_kind
def test_scores_made_ahead_of_a_layer_need_one_with_attention(kind: str) -> None:
    tried = subject(kind)
    inputs = tried.prompts.inputs([ONE])
    for pruner in (PyramidDrop(layers=(2,), keep_ratios=(0.5,)), Feather(layers=(3,))):
        with tried.attach(pruner), pytest.raises(UnsupportedModelError, match=r"Layer 2 of .* one of layers 1, 3"):
            tried.logits(inputs)
    for pruner in (PyramidDrop(layers=(3,), keep_ratios=(0.5,)), Feather(layers=(2,)), VTW(layer=2)):
        with tried.attach(pruner) as handle:
            tried.logits(inputs)
            assert len(handle.trace[0].kept[3]) < 12


def test_training_is_refused_for_a_llava_around_such_a_decoder() -> None:
    text = default_config("qwen3_5").text_config
    model = shrunk_model(LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(num_hidden_layers=1)))
    assert adapter_of(model).attention == "self_attn"
    with pytest.raises(UnsupportedModelError, match="changes attention edges, of which layer 0 "):
        align(model, inject_layer=1)


@each_kind
def test_a_shared_image_and_analysis_are_refused(kind: str) -> None:
    tried = subject(kind)
    with (
        tried.attach(vp.NoPruning()) as handle,
        pytest.raises(UnsupportedModelError, match=r"image_cache\(\) cannot share"),
        handle.image_cache(),
    ):
        pass
    with pytest.raises(UnsupportedModelError, match="no attention edges to look at or to cut"):
        Probe(tried.model, adapter=tried.adapter)


# ---- what it costs --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_counted_flops_of_convolutions_are_those_that_torch_counts() -> None:
    tried = subject("lfm2_vl")
    shape, inputs = tried.host.shape, tried.prompts.inputs([ONE])
    with count_flops(tried.host.decoder) as dense:
        tried.logits(inputs)
    rows = inputs["input_ids"].shape[1]
    assert dense.flops == pytest.approx(dense_macs(shape, rows).flops, rel=0.01)
    with tried.attach(schedule(0)) as handle, count_flops(tried.host.decoder) as pruned:
        tried.logits(inputs)
    counted = prompt_macs(shape, handle.trace[0])
    assert pruned.flops == pytest.approx(counted.flops, rel=0.01)
    assert counted.states == shape.state_macs * (rows + rows - 8)
    assert handle.trace.flops_cut() == pytest.approx(1 - pruned.flops / dense.flops, abs=0.01)


def test_a_row_of_linear_attention_costs_its_maps_and_three_products_with_each_state() -> None:
    tried = subject("qwen3_5")
    mixer: Any = tried.host.attentions[0]
    maps = sum(part.weight.numel() for part in mixer.children() if isinstance(part, (nn.Linear, nn.Conv1d)))
    state = mixer.num_v_heads * mixer.head_k_dim * mixer.head_v_dim
    assert tried.host.shape.state_macs == maps + 3 * state
    assert ModelShape.from_config(tried.model.config).state_layers == (0, 2)


@each_kind
@torch.no_grad()
def test_bytes_of_keys_and_values_are_those_of_layers_that_attend(kind: str) -> None:
    tried = subject(kind)
    with tried.attach(schedule(1)) as handle:
        held = tried.model(**tried.prompts.inputs([ONE]), use_cache=True).cache
        assert handle.trace.kv_bytes() == cache_bytes(held).used
        assert handle.trace[0].key_lengths == [0, 28, 0, 20]
        tried.model(**tried.prompts.inputs([Asked((), 9)]))
        assert handle.trace[0].key_lengths == [0, 14, 0, 14]
