"""Methods that drop once, against loops written from their papers over the plain model's whole attention maps."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import visipruner as vp
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import attention_of, kept_by, largest, values_of
from visipruner.contract.choosing import shares, spread, spread_over_grid, top
from visipruner.pruners.capa import Capa
from visipruner.pruners.fastv import FastV
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.registry import available, method_class
from visipruner.pruners.uniform import UniformPruner
from visipruner.pruners.vtw import VTW, find_layer

LAYER_TWO = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("layer", [1, 2, 4])
@pytest.mark.parametrize("kind", LAYER_TWO)
def test_fastv_keeps_what_the_last_row_attends_to(kind: str, layer: int) -> None:
    model = text_model(kind)
    embeds, mask = prompt()
    kept = kept_by(model, FastV(layer=layer, keep_tokens=5), embeds, mask)
    maps = attention_of(model, embeds)[layer - 1]
    columns = mask[0].nonzero().flatten().tolist()
    scores = [sum(float(head[-1, column]) for head in maps) / len(maps) for column in columns]
    assert kept == [list(range(16))] * layer + [largest(scores, 5)] * (LAYERS + 1 - layer)


@pytest.mark.parametrize("layer", [1, 3])
def test_capa_weighs_attention_by_the_length_of_values(layer: int) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    kept = kept_by(model, Capa(layer=layer, keep_tokens=4), embeds, mask)
    maps, values = attention_of(model, embeds)[layer - 1], values_of(model, embeds)[layer - 1]
    per_group = len(maps) // len(values)
    scores = []
    for column in mask[0].nonzero().flatten().tolist():
        terms = [float(head[-1, column] * values[h // per_group, column].norm()) for h, head in enumerate(maps)]
        scores.append(sum(terms) / len(terms))
    assert kept[layer] == largest(scores, 4)


def test_two_examples_of_a_batch_keep_their_own() -> None:
    """Public ports of FastV let the first example of a batch decide for all."""
    model = text_model("llama")
    embeds, mask = prompt(batch=2)
    with vp.attach(model, FastV(keep_tokens=5), mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    alone = [kept_by(model, FastV(keep_tokens=5), embeds[i : i + 1], mask[:1]) for i in range(2)]
    assert handle.trace.kept == alone
    assert alone[0] != alone[1]


def test_vtw_leaves_nothing_and_computes_no_score() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, VTW(layer=3), mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    trace = handle.trace[0]
    assert [len(kept) for kept in trace.kept] == [16, 16, 16, 0, 0, 0, 0]
    assert (trace.trigger_layer, trace.exit_layer) == (2, 3)
    assert all(work.score_pairs == work.score_rows == 0 for work in trace.work)


def test_vtws_search_is_the_first_layer_under_the_threshold() -> None:
    model = text_model("llama")
    calls = [{"inputs_embeds": prompt(seed=seed)[0]} for seed in (1, 2)]
    mask = prompt()[1]
    means = []
    for layer in range(1, LAYERS):
        terms = []
        for call in calls:
            with torch.no_grad():
                full = model(**call).logits[0, -1].softmax(-1)
                with vp.attach(model, VTW(layer=layer), mask):
                    without = model(**call).logits[0, -1].softmax(-1)
            terms.append(sum(float(q * (q / p).log()) for p, q in zip(full, without, strict=True)))
        means.append(sum(terms) / len(terms))
    threshold = sorted(means)[1] + 1e-6
    expected = next(layer for layer, mean in enumerate(means, start=1) if mean <= threshold)
    assert find_layer(model, calls, threshold, first=1, visual_mask=mask) == expected
    with pytest.raises(vp.ConfigError, match="threshold"):
        find_layer(model, calls, min(means) / 2, first=1, visual_mask=mask)


def test_random_is_seeded_and_leaves_the_global_generator_alone() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    before = torch.get_rng_state()
    kept = [kept_by(model, RandomPruner(keep_tokens=6, seed=seed), embeds, mask)[0] for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert kept[0] == kept[1] != kept[2]


def test_uniform_spreads_over_lines_and_columns() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    assert kept_by(model, UniformPruner(keep_tokens=4), embeds, mask)[0] == [5, 7, 13, 15]


# ---- budgets ---------------------------------------------------------------------------------------------------------


def _budgeted() -> list[str]:
    several = {"deft", "tops"}  # counts, one for each stage
    by_frame = {"evs", "vidcom2"}
    found = [name for name in available() if hasattr(method_class(name), "budget") and name not in several | by_frame]
    return [name for name in found if not method_class(name).reads_states]


@pytest.mark.parametrize("keep", [{"keep_tokens": 0}, {"keep_tokens": 5}, {"keep_tokens": 99}, {"keep_ratio": 0.25}])
@pytest.mark.parametrize("name", _budgeted())
def test_what_is_asked_is_kept_and_counted(name: str, keep: dict[str, Any]) -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7], [3, 0, 2, 0, 4]])
    pruner: Any = replace(method_class(name).for_depth(LAYERS), **{"keep_ratio": 0.0, **keep})
    with vp.attach(model, pruner) as handle, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    for example, (text, visual) in enumerate([(11, 16), (9, 32)]):
        trace = handle.trace[example]
        expected = min(visual, keep.get("keep_tokens", visual // 4))
        assert [len(kept) for kept in trace.kept] == [visual] * pruner.layer + [expected] * (LAYERS + 1 - pruner.layer)
        assert trace.query_lengths == [text + len(kept) for kept in trace.kept[:-1]]
        assert trace.key_lengths == trace.query_lengths
    if keep != {"keep_tokens": 99}:
        assert cache.layers[-1].keys.shape[-2] == max(example.key_lengths[-1] for example in handle.trace.examples)


@pytest.mark.parametrize("settings", [{"keep_tokens": -1}, {"keep_ratio": 1.5}, {"layer": 0}])
def test_settings_without_sense(settings: dict[str, Any]) -> None:
    with pytest.raises(vp.ConfigError):
        FastV(**settings)


@pytest.mark.parametrize("pruner", [FastV(layer=6), VTW(layer=6), UniformPruner(layer=6)])
def test_layers_that_the_model_has_not(pruner: vp.Pruner) -> None:
    with pytest.raises(vp.ConfigError, match="layers are 0 to 5"):
        vp.attach(text_model("llama"), pruner, prompt()[1])


# ---- choosing --------------------------------------------------------------------------------------------------------


@given(scores=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=20), count=st.integers(0, 25))
def test_top(scores: list[float], count: int) -> None:
    assert top(torch.tensor(scores), count).tolist() == largest(scores, count)


@given(total=st.integers(1, 200), data=st.data())
def test_spread(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    places = spread(count, total).tolist()
    assert places == sorted(set(places))
    assert len(places) == count
    assert all(0 <= place < total for place in places)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(height=st.integers(1, 30), width=st.integers(1, 30), data=st.data())
def test_spread_over_a_grid(height: int, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, height * width))
    places = spread_over_grid(count, (height, width)).tolist()
    assert places == sorted(set(places))
    assert len(places) == count
    assert all(0 <= place < height * width for place in places)


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6), count=st.integers(0, 200))
def test_shares(sizes: list[int], count: int) -> None:
    parts = shares(count, sizes)
    assert sum(parts) == min(count, sum(sizes))
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert abs(part - min(count, sum(sizes)) * size / max(sum(sizes), 1)) < 1
