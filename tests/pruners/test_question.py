"""Methods that ask the question's rows, against loops written from their formulas over whole attention maps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.oracle import PrunedEdit, oracle
from tests.pruners.plain import attention_of, kept_by, largest, logits_of, values_of
from visipruner.contract.choosing import spread_over_grid
from visipruner.pruners.deft import DeFT
from visipruner.pruners.dycoke import DyCoke
from visipruner.pruners.priortr import PriorTR
from visipruner.pruners.prumerge import PruMerge
from visipruner.pruners.second_look import SecondLook
from visipruner.pruners.tops import TOPS, preserved

ALL = list(range(16))
BEFORE, AFTER = 5, 6  # text rows of `prompt`
QUESTION = list(range(BEFORE + 16, BEFORE + 16 + AFTER))


def _attention(model: Any, embeds: Tensor, mask: Tensor, kept: list[list[int]], layer: int) -> Tensor:
    """`[heads, n, n]` of a layer in the full-length model with dropped tokens seen by nobody."""
    logits = logits_of(model, embeds, mask, kept)[layer]
    n = logits.shape[-1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    seen[:, [BEFORE + j for j in ALL if j not in kept[layer]]] = False
    return logits.masked_fill(~seen, float("-inf")).softmax(-1)


def _prior_scores(maps: Tensor, rows: list[int], tokens: list[int]) -> list[float]:
    def of(which: list[int]) -> list[float]:
        values = [sum(float(head[row, BEFORE + j]) for head in maps for row in which) for j in tokens]
        return [value / sum(values) for value in values]

    return [a * math.log((a + 1e-10) / (b + 1e-10)) for a, b in zip(of(rows), of(QUESTION[:1]), strict=True)]


@pytest.mark.parametrize("rows", ["question", "last"])
@pytest.mark.parametrize(("kind", "layer"), [("llama", 3), ("qwen3", 1)])
def test_priortr(kind: str, layer: int, rows: Any) -> None:
    model = text_model(kind)
    embeds, mask = prompt()
    kept = kept_by(model, PriorTR(layer=layer, keep_tokens=5, rows=rows), embeds, mask)
    maps = attention_of(model, embeds)[layer - 1]
    scores = _prior_scores(maps, QUESTION if rows == "question" else QUESTION[-1:], ALL)
    assert kept == [ALL] * layer + [largest(scores, 5)] * (LAYERS + 1 - layer)


def test_priortr_takes_each_image_for_itself() -> None:
    model, eager = llava_model(), llava_model(attn="eager")
    inputs = llava_inputs([[3, 0, 2, 0, 7]])
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions[1][0].double()
    kept = []
    for start in (3, 21):
        of = [maps[:, rows, start : start + 16].mean((0, 1)) for rows in (range(37, 44), [37])]
        p, q = (part / part.sum() for part in of)
        kept += [(start > 3) * 16 + j for j in largest((p * (p / q).log()).tolist(), 4)]
    with vp.attach(model, PriorTR(layer=2, keep_tokens=4, scope="image")) as handle, torch.no_grad():
        model(**inputs)
    assert handle.trace[0].kept[-1] == kept


def test_a_question_of_one_row_adds_nothing() -> None:
    embeds, mask = prompt(after=1)
    kept = kept_by(text_model("llama"), PriorTR(layer=1, keep_tokens=3), embeds, mask)
    assert kept[1] == [0, 1, 2], "P = Q: of equals the earliest"


@pytest.mark.parametrize("rows", ["question", "last"])
@pytest.mark.parametrize("score", ["influence", "attention", "prior"])
def test_second_look(score: Any, rows: Any) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    pruner = SecondLook(
        layers=(1, 3), keep_ratios=(0.5, 0.2), score=score, rows=rows, cover_layer=1, cover_ratio=0.7, exit_layer=5
    )
    kept = kept_by(model, pruner, embeds, mask)
    grid = spread_over_grid(11, (4, 4)).tolist()
    expected = [ALL, grid]
    judges = QUESTION if rows == "question" else QUESTION[-1:]
    for layer, count in ((1, 8), (3, 3)):
        tokens = expected[-1]
        expected += [tokens] * (layer + 1 - len(expected))
        maps = _attention(model, embeds, mask, [*expected, *[tokens] * LAYERS], layer)
        values = _values(model, embeds, mask, kept)[layer]
        per_group = len(maps) // len(values)
        if score == "prior":
            scores = _prior_scores(maps, judges, tokens)
        else:
            scores = [0.0] * len(tokens)
            for place, j in enumerate(tokens):
                column = BEFORE + j
                for row in judges:
                    if score == "attention":
                        scores[place] += sum(float(head[row, column]) for head in maps) / len(maps)
                    else:
                        parts = [head[row, column] * values[h // per_group, column] for h, head in enumerate(maps)]
                        scores[place] += float(torch.cat(parts).norm())
        expected.append([tokens[i] for i in largest(scores, count)])
    assert kept[:5] == [*expected, *[expected[-1]] * (5 - len(expected))][:5]
    assert kept[5:] == [[]] * 2


def _values(model: Any, embeds: Tensor, mask: Tensor, kept: list[list[int]]) -> list[Tensor]:
    """Values of the full-length model in which dropped tokens are seen by nobody."""
    with oracle(model, PrunedEdit(mask[0], kept)):
        return values_of(model, embeds)


def test_a_second_look_has_visipruners_shallow_layers() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    for visual in ("prefix", "ffn"):
        look = SecondLook(shallow_end=2, shallow_visual=visual, layers=(3,), keep_ratios=(0.25,), rows="last",
                          cover_layer=None, exit_layer=5)  # fmt: skip
        same = vp.VisiPruner(shallow_end=2, shallow_visual=visual, filter_layer=3, keep_tokens=4, exit_layer=5)
        with vp.attach(model, look, mask) as handle, torch.no_grad():
            logits = model(inputs_embeds=embeds).logits
        with vp.attach(model, same, mask) as other, torch.no_grad():
            torch.testing.assert_close(model(inputs_embeds=embeds).logits, logits)
        assert handle.trace[0].kept == other.trace[0].kept


def test_settings_without_sense_for_a_second_look() -> None:
    with pytest.raises(vp.ConfigError, match="cannot filter in layer 3"):
        SecondLook(layers=(3, 5), shallow_end=4)
    with pytest.raises(vp.ConfigError, match="cannot grow"):
        SecondLook(layers=(3, 5), keep_ratios=(0.1, 0.2))
    with pytest.raises(vp.ConfigError, match="same length"):
        SecondLook(layers=(3, 5), keep_ratios=(0.1,))
    assert SecondLook.for_depth(32) == SecondLook()


def test_what_a_share_means_where_no_single_ratio_says_it() -> None:
    look = SecondLook().with_share(0.5, None, [])
    assert (look.cover_ratio, look.keep_ratios) == (0.5, (0.25, 0.125))
    bare = SecondLook(cover_layer=None).with_share(0.5, None, [])
    assert (bare.cover_ratio, bare.keep_ratios) == (1.0, (0.5, 0.25))
    assert DyCoke().with_share(0.4, None, []).merge_ratio == pytest.approx(0.8)
    assert PruMerge().with_share(0.3, None, []) == PruMerge(keep_ratio=0.3)


def _towers_attention(model: Any, inputs: dict[str, Tensor], layer: int) -> list[float]:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions[layer]
    model.set_attn_implementation("sdpa")
    return maps[0, :, 0, 1:].mean(0).tolist()


def test_deft() -> None:
    model = llava_model()
    inputs = llava_inputs([[BEFORE, 0, AFTER]])
    with vp.attach(model, DeFT(keep_tokens=4, layer=3, reserve=0.4)) as handle, torch.no_grad():
        model(**inputs)
    kept = handle.trace[0].kept
    reserve = largest(_towers_attention(model, inputs, -1), 4 + 5)  # ceil(0.4 * 12)
    embeds, mask = _entering(model, inputs)
    maps = _attention(model, embeds, mask, [reserve] * (LAYERS + 1), 2)
    scores = [sum(float(head[row, BEFORE + j]) for head in maps for row in QUESTION) for j in reserve]
    final = [reserve[i] for i in largest(scores, 4)]
    assert kept == [reserve] * 3 + [final] * (LAYERS - 2)


def _entering(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    mask = inputs["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        features = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
        embeds[mask] = torch.cat(list(features))
    return embeds, mask


def _greedy(relevance: list[float], states: Tensor, count: int, diversity: float, coverage: float) -> list[int]:
    states = states.double()
    n = len(states)
    like = [[float(torch.cosine_similarity(states[i], states[j], dim=0)) for j in range(n)] for i in range(n)]
    chosen = [max(range(n), key=lambda j: relevance[j])]
    while len(chosen) < count:
        free = [j for j in range(n) if j not in chosen]
        nearest = [max(like[j][k] for k in chosen) for j in range(n)]
        terms = [
            [relevance[i] for i in free],
            [1 - nearest[i] for i in free],
            [sum(max(0.0, like[i][j] - nearest[j]) for j in free) for i in free],
        ]
        weights = (1.0, diversity, coverage)
        means = [sum(term) / len(free) for term in terms]
        total = [sum(w * t[i] / m for w, t, m in zip(weights, terms, means, strict=True)) for i in range(len(free))]
        chosen.append(free[max(range(len(free)), key=lambda i: total[i])])
    return sorted(chosen)


def test_tops() -> None:
    model = llava_model()
    inputs = llava_inputs([[BEFORE, 0, AFTER]])
    pruner = TOPS(keep_tokens=6, layers=(0, 2, 4), multiples=(2, 1, 0.5), coverage=0.7, positions="keep")
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model(**inputs)
    embeds, mask = _entering(model, inputs)
    visual, words = embeds[0, BEFORE : BEFORE + 16], embeds[0, BEFORE + 16 :]
    relevance = (visual @ words.T).softmax(-1).mean(0)
    raters = [QUESTION[i] for i in range(AFTER) if relevance[i] > relevance.mean()]
    assert 0 < len(raters) < AFTER
    stage = _greedy(_towers_attention(model, inputs, -2), visual, 12, 0.5, 0.7)
    expected = [stage] * 2
    for layer, count in ((2, 6), (4, 3)):
        held = [*expected, *[stage] * LAYERS]
        maps = _attention(model, embeds, mask, held, layer - 1)
        scores = [sum(float(head[row, BEFORE + j]) for head in maps for row in raters) for j in stage]
        states = _states(model, embeds, mask, held)[layer][[BEFORE + j for j in stage]]
        stage = [stage[i] for i in _greedy(scores, states, count, 0.5, 0.7)]
        expected += [stage] * 2
    assert handle.trace[0].kept == [*expected, stage]


def _states(model: Any, embeds: Tensor, mask: Tensor, kept: list[list[int]]) -> list[Tensor]:
    with oracle(model, PrunedEdit(mask[0], kept)), torch.no_grad():
        return [
            part[0] for part in model(inputs_embeds=embeds, output_hidden_states=True, use_cache=False).hidden_states
        ]


def test_tops_chooses_what_is_no_number_last() -> None:
    states, relevance = torch.randn(8, 5), torch.rand(8)
    states[3], relevance[6] = float("nan"), float("nan")
    order = preserved(relevance, states, 8, (1.0, 0.5, 0.4)).tolist()
    assert sorted(order) == list(range(8))
    assert set(order[6:]) == {3, 6}
