"""Real pruned runs: a trace's exact work is what torch measures, and its key lengths are the bytes held."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import visipruner as vp
from visipruner.accounting import (
    Macs,
    cache_bytes,
    count_flops,
    decode_macs,
    dense_kv_bytes,
    dense_macs,
    expected_kv_bytes,
    prompt_cut,
    prompt_macs,
    schedule_from_trace,
)
from visipruner.accounting.record import ExampleTrace
from visipruner.models.shape import ModelShape
from visipruner.pruners.feather import Feather
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.sparsevlm import SparseVLM

LENGTH, FIRST, LAST = 200, 20, 170
_FILTER: dict[str, Any] = {"shallow_end": 2, "filter_layer": 3, "keep_tokens": 8}
METHODS: dict[str, vp.Pruner] = {
    "prefix": vp.VisiPruner(**_FILTER, exit_layer=5),
    "ffn": vp.VisiPruner(**_FILTER, exit_layer=5, shallow_visual="ffn"),
    "middle only": vp.VisiPruner(**_FILTER, stages=("middle",)),
    # Two that project some rows ahead of a layer, and one that reads the attention of many.
    "pyramiddrop": PyramidDrop(layers=(1, 3), keep_ratios=(0.5, 0.25)),
    "feather": Feather(layers=(1, 3)),
    "sparsevlm": SparseVLM(layers=(1, 3), keep=(60, 20), tokens=150),
}


def tiny(attention: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


def prompt(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    visual = torch.zeros(batch, LENGTH, dtype=torch.bool)
    visual[:, FIRST:LAST] = True
    return torch.randn(batch, LENGTH, 64), visual


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("padding", [0, 15])
@torch.no_grad()
def test_exact_and_measured_agree_within_one_percent(method: str, attention: str, padding: int) -> None:
    model, (embeds, visual) = tiny(attention), prompt(batch=2)
    shape = ModelShape.from_config(model.config)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :padding] = 0
    with vp.attach(model, METHODS[method], visual_mask=visual) as handle, count_flops(model.model) as count:
        model(inputs_embeds=embeds, attention_mask=mask)
        trace = handle.trace
    exact = sum((prompt_macs(shape, example) for example in trace.examples), Macs())
    assert count.flops == pytest.approx(exact.flops, rel=0.01)
    assert exact.score > 0
    assert 0.2 < prompt_cut(shape, trace[0]) < 0.9
    # Padding is held against padding: where layers run before anything leaves, they run it too.
    rows = LENGTH - padding if method in ("prefix", "ffn") else LENGTH
    assert trace.flops_cut(1) == pytest.approx(1 - trace.flops(1) / dense_macs(shape, rows).flops)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_key_lengths_tell_the_bytes_held_and_the_cost_of_the_next_token(method: str) -> None:
    model, (embeds, visual) = tiny("sdpa"), prompt(batch=1)
    shape = ModelShape.from_config(model.config)
    with vp.attach(model, METHODS[method], visual_mask=visual) as handle:
        cache = model(inputs_embeds=embeds, use_cache=True).past_key_values
        keys = handle.trace[0].key_lengths
        held = cache_bytes(cache)
        assert handle.trace.kv_bytes() == held.used
        with count_flops() as count:
            model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)
    assert held.held == held.used == expected_kv_bytes(shape, keys, dtype_bytes=4) < dense_kv_bytes(shape, LENGTH, 4)
    assert cache_bytes(cache).used == expected_kv_bytes(shape, keys, dtype_bytes=4, new_tokens=1)
    assert count.flops == pytest.approx(decode_macs(shape, keys).flops, rel=0.01)


@torch.no_grad()
def test_the_papers_schedule_of_a_real_trace() -> None:
    model, (embeds, visual) = tiny("sdpa"), prompt(batch=1)
    with vp.attach(model, METHODS["prefix"], visual_mask=visual) as handle:
        model(inputs_embeds=embeds)
        schedule = schedule_from_trace(handle.trace[0])
    assert [span.visual_tokens for span in schedule] == [150, 150, 150, 150, 8, 0]
    assert [span.visual_attention for span in schedule] == [False, False, True, True, True, True]


def test_the_grid_of_a_later_image() -> None:
    images: dict[str, Any] = {"tokens_per_image": [4, 6], "grids": [(2, 2), (2, 3)]}
    kept = [list(range(10)), list(range(10)), [1, 4, 6, 9], [9]]
    trace = ExampleTrace(prompt_length=14, num_visual=10, **images, trigger_layer=1, kept=kept)
    assert trace.kept_grid(1) == [[True, False, True], [False, False, True]]
    assert trace.kept_grid() == [[False, True], [False, False]]
    assert trace.kept_grid(1, layer=3) == [[False] * 3, [False, False, True]]
    with pytest.raises(ValueError, match="image 2 of this prompt has no token grid"):
        trace.kept_grid(2)
