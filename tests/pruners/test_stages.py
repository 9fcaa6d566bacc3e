"""Methods that drop in several layers, against loops written from their papers over whole maps of the plain model in
which dropped tokens are seen by nobody."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama

import visipruner as vp
from tests.models import LAYERS, prompt, text_model
from tests.pruners.plain import kept_by, largest, logits_of
from tests.pruners.test_clustering import peaks_by_hand
from visipruner.pruners.composed import Composed
from visipruner.pruners.dart import Dart
from visipruner.pruners.feather import Feather
from visipruner.pruners.fitprune import FitPrune, dispensable, fit, until_met
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.sparsevlm import SparseVLM

ALL = list(range(16))
BEFORE, AFTER = 5, 6  # text rows of `prompt`


def _column(token: int) -> int:
    return BEFORE + token


def _softmax_over(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp(value - top) for value in row]
    return [weight / sum(weights) for weight in weights]


def _last_row_scores(logits: Tensor, tokens: list[int]) -> list[float]:
    """Softmax of every head's last row over the given tokens, mean over heads."""
    heads = [_softmax_over([float(head[-1, _column(j)]) for j in tokens]) for head in logits]
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)]


def _last_row_attention(logits: Tensor, tokens: list[int]) -> list[float]:
    """Softmax of every head's last row over the text and the given tokens, mean over heads: what the tokens have."""
    n = logits.shape[-1]
    columns = [*map(_column, tokens), *range(BEFORE), *range(n - AFTER, n)]
    heads = [_softmax_over([float(head[-1, column]) for column in columns]) for head in logits]
    return [sum(column) / len(heads) for column in zip(*heads, strict=True)][: len(tokens)]


@pytest.mark.parametrize("positions", ["keep", "compact"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_pyramiddrop(kind: str, positions: Any) -> None:
    model = text_model(kind)
    embeds, mask = prompt()
    pruner = PyramidDrop(layers=(1, 2, 4), keep_ratios=(0.75, 0.5, 0.2), positions=positions)
    kept = kept_by(model, pruner, embeds, mask)
    tokens = ALL
    for layer in range(LAYERS):
        if layer in pruner.layers:
            count = int(16 * pruner.keep_ratios[pruner.layers.index(layer)])
            before = [*kept[:layer], *[tokens] * (LAYERS + 1 - layer)]  # ranked where the stage before has put them
            scores = _last_row_attention(logits_of(model, embeds, mask, before, pruner)[layer], tokens)
            tokens = [tokens[i] for i in largest(scores, count)]
        assert kept[layer] == tokens, layer
    assert sum(map(len, kept[:LAYERS])) == 16 + 12 + 8 + 8 + 3 + 3


def test_pyramiddrop_counts_a_head_by_what_it_has_of_the_image() -> None:
    model = text_model("llama-mha")
    embeds, mask = prompt(visual=36)
    tokens = list(range(36))
    kept = kept_by(model, PyramidDrop(layers=(2,), keep_ratios=(0.5,)), embeds, mask)
    logits = logits_of(model, embeds, mask, [tokens] * (LAYERS + 1))[2]
    assert kept[2] == largest(_last_row_attention(logits, tokens), 18)
    assert kept[2] != largest(_last_row_scores(logits, tokens), 18), "text must matter for this to test anything"


@contextmanager
def _without_rotary(calls: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Collects queries and keys as Llama hands them to its rotary embedding."""
    original = modeling_llama.apply_rotary_pos_emb

    def spy(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((q, k))
        return original(q, k, *args, **kwargs)

    modeling_llama.apply_rotary_pos_emb = spy
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = original


def _raw_logits(model: Any, embeds: Tensor, mask: Tensor, kept: list[list[int]]) -> list[Tensor]:
    """As `logits_of`, before the rotary embedding."""
    calls: list[tuple[Tensor, Tensor]] = []
    with _without_rotary(calls):
        logits_of(model, embeds, mask, kept)
    raw = []
    for q, k in calls:
        k = k[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
        raw.append(q[0] @ k.transpose(1, 2) / math.sqrt(q.shape[-1]))
    return raw


CORNERS = {0, 3, 12, 15}  # lines 0 and 3, columns 0 and 3 of a 4 x 4 grid


@pytest.mark.parametrize("layers", [(2, 4), (2, 3), (1, 4)])
def test_feather(layers: tuple[int, int]) -> None:
    """Tokens are ranked in the layer before the one that they leave before, by those present there."""
    model = text_model("llama")
    embeds, mask = prompt()
    kept = kept_by(model, Feather(layers=layers, keep_ratio=0.6, stride=3), embeds, mask)
    raw = _raw_logits(model, embeds, mask, kept)
    before = layers[0] - 1
    best = largest(_last_row_scores(raw[before], ALL), int(16 * 0.6))
    first = sorted({*best, *CORNERS})
    second = [first[i] for i in largest(_last_row_scores(raw[layers[1] - 1], first), int(len(first) * 0.36))]
    stages = [first] * (layers[1] - layers[0])
    assert kept == [ALL] * layers[0] + stages + [second] * (LAYERS + 1 - layers[1])
    rotated = logits_of(model, embeds, mask, [ALL] * (LAYERS + 1))
    assert best != largest(_last_row_scores(rotated[before], ALL), 9), "positions must matter for this to test anything"
    assert best != largest(_last_row_scores(raw[before + 1], ALL), 9), "and so must the layer"


def test_feathers_scores_stay_with_their_tokens() -> None:
    """Between the layer that ranks and the one that tokens leave before, another method may drop some."""
    model = text_model("llama")
    embeds, mask = prompt()
    every_second = vp.FixedSchedule(layers=(1,), keep=(8,))
    pruner = Composed(parts=(every_second, Feather(layers=(2,), keep_ratio=0.4, stride=3)))
    scores = _last_row_scores(_raw_logits(model, embeds, mask, [ALL] * (LAYERS + 1))[1], ALL)
    left = kept_by(model, every_second, embeds, mask)[2]
    best = {left[i] for i in largest([scores[token] for token in left], int(8 * 0.4))}
    assert kept_by(model, pruner, embeds, mask)[2] == sorted(best | CORNERS & set(left))


def _hidden_and_keys(model: Any, embeds: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """What enters a layer `[n, d]`, and the keys the layer before cached `[kv_heads, n, head_dim]`."""
    with torch.no_grad():
        output = model(inputs_embeds=embeds, output_hidden_states=True, use_cache=True)
    return output.hidden_states[layer][0], output.past_key_values.layers[layer - 1].keys[0]


@pytest.mark.parametrize(("budget", "images", "texts"), [(9, 2, 2), (3, 4, 4), (7, 0, 2), (8, 3, 99)])
def test_dart(budget: int, images: int, texts: int) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    kept = kept_by(model, Dart(layer=2, keep_tokens=budget, pivot_image=images, pivot_text=texts), embeds, mask)
    hidden, keys = _hidden_and_keys(model, embeds, 2)
    length = [sum(float(keys[h, row].abs().sum()) for h in range(len(keys))) for row in range(len(hidden))]
    by_length = sorted(ALL, key=lambda j: -length[_column(j)])
    chosen = by_length[: min(images, budget)]
    words = sorted(range(BEFORE + 16, len(hidden)), key=lambda row: -length[row])[:texts]
    anchors = [_column(j) for j in chosen] + words
    wanted = budget - len(chosen)
    for index, anchor in enumerate(anchors):
        quota = wanted // len(anchors) + (index < wanted % len(anchors))
        rest = [j for j in ALL if j not in chosen]
        likeness = {j: float(torch.cosine_similarity(hidden[anchor], hidden[_column(j)], dim=0)) for j in rest}
        chosen = chosen + sorted(rest, key=lambda j: likeness[j])[:quota]
    assert kept == [ALL] * 2 + [sorted(chosen)] * (LAYERS - 1)
    assert len(chosen) == budget


def test_sparsevlm_without_recycling() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    pruner = SparseVLM(layers=(1, 3), keep=(9, 4), tokens=16, recycle_ratio=0)
    kept = kept_by(model, pruner, embeds, mask)
    visual, words = embeds[0, BEFORE : BEFORE + 16], embeds[0, BEFORE + 16 :]
    shares = [_softmax_over([float(v @ t) for t in words]) for v in visual]
    relevance = [sum(column) / 16 for column in zip(*shares, strict=True)]
    raters = [t for t in range(AFTER) if relevance[t] > sum(relevance) / AFTER]
    assert 0 < len(raters) < AFTER
    maps = logits_of(model, embeds, mask, kept, pruner)
    tokens = ALL
    for layer in range(LAYERS):
        assert kept[layer] == tokens
        if layer in pruner.layers:
            weights = maps[layer].clone()
            n = weights.shape[-1]
            gone = [_column(j) for j in ALL if j not in tokens]
            weights[:, :, gone] = float("-inf")
            weights = weights.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), float("-inf")).softmax(-1)
            rows = [BEFORE + 16 + t for t in raters]
            scores = [sum(float(weights[:, row, _column(j)].mean()) for row in rows) / len(rows) for j in tokens]
            tokens = [tokens[i] for i in largest(scores, pruner.keep[pruner.layers.index(layer)])]


def test_sparsevlm_recycles_the_best_that_leave() -> None:
    """Merged tokens hold the mean of their clusters, and nobody else's hidden state changes."""
    model = text_model("llama")
    embeds, mask = prompt(visual=64)
    with torch.no_grad():
        plain = model(inputs_embeds=embeds, output_hidden_states=True).hidden_states[2][0]
    recycled_count = (64 - 20) // 2 + 1
    kept, best = (
        set(kept_by(model, SparseVLM(layers=(1,), keep=(count,), tokens=64, recycle_ratio=0), embeds, mask)[2])
        for count in (20, 20 + recycled_count)
    )
    entered: list[Tensor] = []
    hook = model.model.layers[2].input_layernorm.register_forward_pre_hook(
        lambda _module, args: entered.append(args[0])
    )
    pruner = SparseVLM(layers=(1,), keep=(20,), tokens=64, recycle_ratio=0.5)
    with vp.attach(model, pruner, mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    hook.remove()
    assert handle.trace[0].merged == [2]
    leaving = sorted(best - kept)
    states = plain[[_column(token) for token in leaving]]
    centres, members = peaks_by_hand(states, recycled_count // 10 + 1)
    means = {
        leaving[centre]: states[[place for place, member in enumerate(members) if member == cluster]].mean(0)
        for cluster, centre in enumerate(centres)
    }
    stay = handle.trace[0].kept[2]
    assert stay == sorted([*kept, *means])
    for token, state in zip(stay, entered[0][0, BEFORE:], strict=False):
        torch.testing.assert_close(state, means.get(token, plain[_column(token)]))
    assert max(members.count(cluster) for cluster in range(len(centres))) > 1, "a mean of one shows nothing"


def test_sparsevlm_recycles_one_token_at_least() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    for ratio, kept in ((0.3, 16), (0.0, 15)):
        pruner = SparseVLM(layers=(1,), keep=(15,), tokens=16, recycle_ratio=ratio)
        assert len(kept_by(model, pruner, embeds, mask)[2]) == kept


@pytest.mark.parametrize(("budget", "average"), [(192, 202.75), (128, 140.8125), (64, 79.1875)])
def test_sparsevlms_budgets_are_averages_over_layers_roughly(budget: int, average: float) -> None:
    """The published counts, on a prompt of 576 tokens: what a budget is named for is not quite what runs."""
    published = SparseVLM.published(budget)
    model = text_model("llama")
    embeds, mask = prompt(visual=576)
    kept = kept_by(model, SparseVLM(layers=(0, 2, 4), keep=published.keep, recycle_ratio=0), embeds, mask)
    assert [len(part) for part in kept] == [576, *(count for count in published.keep for _ in range(2))]
    by_layer = [576] * 3 + [published.keep[0]] * 4 + [published.keep[1]] * 9 + [published.keep[2]] * 16
    assert (len(by_layer), sum(by_layer) / 32) == (32, average)


def _received(logits: Tensor, tokens: list[int]) -> tuple[list[float], list[float]]:
    """Of the tokens present: what each receives from a row of the text after the image, and from a visual row that is
    present, by FitPrune."""
    n = logits.shape[-1]
    hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
    hidden[:, [_column(j) for j in ALL if j not in tokens]] = True
    weights = logits.masked_fill(hidden, float("-inf")).softmax(-1)
    text, image = range(BEFORE + 16, n), [_column(j) for j in tokens]
    cross = [sum(max(float(head[row, _column(j)]) for head in weights) for row in text) / len(text) for j in tokens]
    own = [sum(max(float(head[row, _column(j)]) for head in weights) for row in image) / len(image) for j in tokens]
    return cross, own


def test_fitprune_scores() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    remove = (0.25, 0.0, 0.25, 0.1, 0.2, 0.0)
    kept = kept_by(model, FitPrune(remove=remove), embeds, mask)
    maps = logits_of(model, embeds, mask, kept)
    tokens = ALL
    for layer in range(LAYERS):
        assert kept[layer] == tokens, layer
        scores = [cross * own for cross, own in zip(*_received(maps[layer], tokens), strict=True)]
        count = 16 - round(16 * sum(remove[: layer + 1]))
        tokens = [tokens[i] for i in largest(scores, count)]
    assert kept[LAYERS] == tokens


def test_what_fitprune_can_do_without() -> None:
    mass = torch.tensor([4.0, 1.0, 3.0, 2.0])
    for floor, leaves in {
        10.0: [],
        9.5: [],
        9.0: [1],
        7.5: [1],
        7.0: [1, 3],
        4.0: [1, 2, 3],
        0.0: [0, 1, 2, 3],
    }.items():
        assert dispensable(mass, floor).nonzero().flatten().tolist() == leaves, floor
    assert dispensable(torch.ones(3), 2.0).tolist() == [True, False, False]


def _spared(masses: list[float], floor: float) -> set[int]:
    """Positions of those that stay when the smallest go one by one, as long as the others sum to the floor."""
    staying = sorted(range(len(masses)), key=lambda i: masses[i])
    while staying and sum(masses[i] for i in staying[1:]) >= floor:
        staying = staying[1:]
    return set(staying)


@pytest.mark.parametrize("keep_ratio", [0.55, 0.7, 1.0])
def test_fitprunes_recipe_of_one_alpha(keep_ratio: float) -> None:
    """A search in steps of a half ends at alpha = 0.5, and what is removed ends where the budget is met."""
    model, alpha = text_model("llama"), 0.5
    prompts, mask = [prompt(seed=seed)[0] for seed in (1, 2)], prompt()[1]
    removed = torch.zeros(len(prompts), LAYERS)
    for number, embeds in enumerate(prompts):
        dense = [_received(part, ALL) for part in logits_of(model, embeds, mask, [ALL] * (LAYERS + 1))]
        kept = [ALL]
        for layer in range(LAYERS):
            tokens, so_far = kept[-1], [*kept, *[kept[-1]] * (LAYERS - layer)]
            cross, own = _received(logits_of(model, embeds, mask, so_far)[layer], tokens)
            floors = [(1 - alpha) * sum(masses) for masses in dense[layer]]
            by_either = [_spared(cross, floors[0]), _spared(own, floors[1])]
            if layer == 0:
                assert by_either[0] - by_either[1], "the two ways must differ"
                assert by_either[1] - by_either[0], "the two ways must differ"
            kept.append([tokens[i] for i in sorted(set.union(*by_either))])
            removed[number, layer] = (len(tokens) - len(kept[-1])) / 16
    whole = removed.mean(0).tolist()
    assert len([part for part in whole if part]) > 2, "tokens must go on leaving after the first layer"
    expected: list[float] = []
    for layer in range(LAYERS):
        running = [1 - sum(expected[:before]) for before in range(layer + 1)]
        is_met = sum(running) + running[-1] * (LAYERS - layer - 1) <= keep_ratio * LAYERS
        expected.append(0.0 if is_met else whole[layer])
    recipe = fit(model, [{"inputs_embeds": embeds} for embeds in prompts], keep_ratio, mask, tolerance=alpha)
    assert recipe.remove == pytest.approx(expected)


def test_fitprune_stops_once_its_budget_is_met() -> None:
    removed = (0.25, 0.25, 0.25, 0.25)
    assert until_met(removed, 1.0) == (0.0, 0.0, 0.0, 0.0)
    assert until_met(removed, 0.8125) == (0.25, 0.0, 0.0, 0.0)
    assert until_met(removed, 0.8) == (0.25, 0.25, 0.0, 0.0)
    assert until_met(removed, 0.625) == (0.25, 0.25, 0.25, 0.0)


@pytest.mark.parametrize("keep_ratio", [0.4, 0.7])
def test_fitprunes_recipe_meets_its_budget(keep_ratio: float) -> None:
    model = text_model("llama")
    calls = [{"inputs_embeds": prompt(seed=seed)[0]} for seed in (1, 2, 3)]
    mask = prompt()[1]
    recipe = fit(model, calls, keep_ratio, mask)
    assert len(recipe.remove) == LAYERS
    present = [1 - sum(recipe.remove[:layer]) for layer in range(LAYERS)]
    assert sum(present) / LAYERS <= keep_ratio
    assert sum(present) / LAYERS > keep_ratio - 0.15
    kept = kept_by(model, recipe, calls[0]["inputs_embeds"], mask)
    assert sum(map(len, kept[:LAYERS])) / LAYERS / 16 == pytest.approx(sum(present) / LAYERS, abs=1 / 16)


def test_a_recipe_belongs_to_a_depth() -> None:
    with pytest.raises(vp.ConfigError, match="fit a recipe"):
        vp.attach(text_model("llama"), FitPrune(remove=(0.5,)), prompt()[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PyramidDrop(layers=(8, 4, 2)), "ascending"),
        (lambda: PyramidDrop(layers=(8, 16)), "same length"),
        (lambda: PyramidDrop(keep_ratios=(0.1, 0.2, 0.3)), "grow"),
        (lambda: PyramidDrop(keep_ratios=(2.0, 0.2, 0.1)), r"\[0, 1\]"),
        (lambda: Feather(stride=0), "stride"),
        (lambda: Feather(layers=(0, 2)), "1 or later"),
        (lambda: Dart(pivot_image=0, pivot_text=0), "pivot"),
        (lambda: SparseVLM(recycle_ratio=2), "recycle_ratio"),
        (lambda: FitPrune(remove=(0.9, 0.9)), "sum to"),
    ],
)
def test_settings_without_sense(make: Any, message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        make()


def test_projections_ahead_of_a_layer_are_counted() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, PyramidDrop(layers=(1, 3), keep_ratios=(0.5, 0.25)), mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    work = handle.trace[0].work
    assert [layer.score_rows for layer in work] == [0, 27, 0, 19, 0, 0]
    assert [layer.score_pairs for layer in work] == [0, 27, 0, 19, 0, 0]


@pytest.mark.parametrize(("layers", "at"), [((2, 4), 3), ((2, 3), 2)])
def test_feathers_projections_are_counted(layers: tuple[int, int], at: int) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    with vp.attach(model, Feather(layers=layers, keep_ratio=0.5, stride=9), mask) as handle, torch.no_grad():
        model(inputs_embeds=embeds)
    left = len(handle.trace[0].kept[2])
    assert 8 <= left <= 9
    work = handle.trace[0].work
    assert [layer.score_pairs for layer in work] == [{1: 16, at: left}.get(layer, 0) for layer in range(LAYERS)]
    assert [layer.score_rows for layer in work] == [{1: 17, at: left + 1}.get(layer, 0) for layer in range(LAYERS)]
