"""Several methods on one prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import visipruner as vp
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import kept_by, largest, logits_of
from visipruner.pruners.composed import Composed
from visipruner.pruners.divprune import DivPrune
from visipruner.pruners.fastv import FastV
from visipruner.pruners.pool import Pool
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.registry import make, make_from_spec, method_class
from visipruner.pruners.schedule import FixedSchedule
from visipruner.pruners.sparsevlm import SparseVLM
from visipruner.pruners.uniform import UniformPruner


def test_the_second_part_sees_what_the_first_left() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    first, second = DivPrune(keep_tokens=9), FastV(layer=2, keep_tokens=4)
    kept = kept_by(model, Composed(parts=(first, second)), embeds, mask)
    diverse = kept_by(model, first, embeds, mask)[0]
    maps = logits_of(model, embeds, mask, [diverse] * (LAYERS + 1), first)[1]
    rows = torch.tensor([*range(5), *(5 + j for j in diverse), *range(21, 27)])
    weights = maps[:, -1][:, rows].softmax(-1)
    scores = [float(weights[:, 5 + place].mean()) for place in range(9)]
    attended = [diverse[i] for i in largest(scores, 4)]
    assert kept == [diverse] * 2 + [attended] * (LAYERS - 1)


@pytest.mark.parametrize("layer", [0, 2])
def test_parts_at_the_same_entry_follow_each_other(layer: int) -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    lot, ahead = RandomPruner(layer=layer, keep_tokens=12), PyramidDrop(layers=(layer,), keep_ratios=(0.5,))
    kept = kept_by(model, Composed(parts=(lot, ahead)), embeds, mask)
    drawn = kept_by(model, lot, embeds, mask)[layer]
    maps = logits_of(model, embeds, mask, [list(range(16))] * (LAYERS + 1))[layer]
    rows = torch.tensor([*(5 + token for token in drawn), *range(5), *range(21, 27)])
    weights = maps[:, -1][:, rows].softmax(-1).mean(0)[:12]
    assert kept[layer] == [drawn[i] for i in largest(weights.tolist(), 6)]


BEFORE = (
    *("random", "uniform", "pool", "divprune", "cdpruner", "fastervlm", "vispruner", "visionzip", "hiprune", "scope"),
    *("prumerge", "vidcom2"),
)
INSIDE = (
    *("fastv", "pyramiddrop", "sparsevlm", "fitprune", "vtw", "feather", "dart", "capa", "visipruner", "priortr"),
    *("ivc-prune", "second-look"),
)


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("before", BEFORE)
def test_any_method_before_the_model_with_any_inside(before: str, inside: str) -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    first, second = (method_class(name).for_depth(LAYERS) for name in (before, inside))
    if inside == "visipruner":
        second = vp.VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=1, exit_layer=5)
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    with vp.attach(model, first) as handle, torch.no_grad():
        model(**inputs)
        alone = handle.trace[0].kept
    with vp.attach(model, Composed(parts=(first, second))) as handle:
        cached = model.generate(**inputs, **settings)
        kept = handle.trace[0].kept
        uncached = model.generate(**inputs, **settings, use_cache=False)
    assert kept[0] == alone[0]
    assert len(kept[-1]) < len(kept[0]) < 16
    assert torch.equal(cached, uncached)


def test_merged_tokens_are_what_the_next_part_sees() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    both = Composed(parts=(Pool(stride=2), DivPrune(keep_tokens=2)))
    assert both.merges
    kept = kept_by(model, both, embeds, mask)[0]
    means = embeds[0, 5:21].view(2, 2, 2, 2, -1).mean((1, 3)).flatten(0, 1)
    likeness = torch.nn.functional.cosine_similarity(means[None], means[:, None], dim=-1)
    nearest = likeness.masked_fill(torch.eye(4, dtype=torch.bool), -2).max(-1).values
    start = int(nearest.argmin())
    other = min((j for j in range(4) if j != start), key=lambda j: float(likeness[start, j]))
    places = [5, 7, 13, 15]
    assert kept == sorted([places[start], places[other]])


@pytest.mark.parametrize("scored_first", [True, False])
def test_scores_of_a_layer_stay_with_their_tokens(scored_first: bool) -> None:
    """SparseVLM rates tokens inside a layer and chooses after it, when another method may have dropped some."""
    model = text_model("llama")
    embeds, mask = prompt()
    rated, chosen = (SparseVLM(layers=(2,), keep=(n,), tokens=16, recycle_ratio=0) for n in (16, 4))
    every_second = FixedSchedule(layers=(2,), keep=(8,), pattern="uniform")
    order = [len(kept_by(model, replace(rated, keep=(n,)), embeds, mask)[3]) for n in range(1, 17)]
    assert order == list(range(1, 17))
    best_first: list[int] = []
    for n in range(1, 17):
        best_first += [t for t in kept_by(model, replace(rated, keep=(n,)), embeds, mask)[3] if t not in best_first]
    left = kept_by(model, every_second, embeds, mask)[3]
    expected = sorted([t for t in best_first if t in left][:4])
    parts = (chosen, every_second) if scored_first else (every_second, chosen)
    assert kept_by(model, Composed(parts=parts), embeds, mask)[3] == expected


def test_after_one_attention_the_common_tokens_stay() -> None:
    model = text_model("llama")
    embeds, mask = prompt()
    even = vp.FixedSchedule(layers=(1,), keep=(8,))
    best = FastV(layer=2, keep_tokens=8)
    kept = kept_by(model, Composed(parts=(even, best)), embeds, mask)
    alone = [set(kept_by(model, part, embeds, mask)[2]) for part in (even, best)]
    assert set(kept[2]) == alone[0] & alone[1]
    assert 0 < len(kept[2]) < 8


def test_visipruner_after_divprune_reports_its_evidence() -> None:
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    pruner = make_from_spec(
        "divprune:keep_tokens=9+visipruner:shallow_end=2,filter_layer=3,keep_tokens=4,exit_threshold=-1.0"
    )
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model(**inputs)
    trace = handle.trace[0]
    assert [len(kept) for kept in trace.kept] == [9, 9, 9, 9, 4, 4, 0]
    assert (trace.trigger_layer, trace.exit_votes) == (3, [4, 5])
    assert trace.visual_attention == [False, False, True, True, True, True]


def test_specifications_and_files(tmp_path: Path) -> None:
    pruner = make_from_spec("divprune:keep_tokens=192+visipruner")
    assert pruner == Composed(parts=(DivPrune(keep_tokens=192), vp.VisiPruner()))
    pruner.save_pretrained(tmp_path)
    assert vp.load_pruner(tmp_path) == pruner
    assert make("composed", **pruner.settings()) == pruner
    assert make_from_spec("uniform:keep_ratio=2.5e-1 + fastv") == Composed(
        parts=(UniformPruner(keep_ratio=0.25), FastV())
    )
    assert make_from_spec("pyramiddrop:layers=[2,3],keep_ratios=[0.5,0.25]") == PyramidDrop(
        layers=(2, 3), keep_ratios=(0.5, 0.25)
    )


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: make("composed"), "list of"),
        (lambda: make("composed", parts=[{"method": "fastx", "settings": {}}]), "did you mean 'fastv'"),
        (lambda: Composed(parts=()), "needs pruners"),
        (lambda: make_from_spec("divprune+visiprunr"), "did you mean 'visipruner'"),
        (lambda: Composed(parts=(vp.VisiPruner(), vp.VisiPruner())).check(32), "both change"),
        (lambda: make_from_spec("divprune+vtw:layer=9").check(6), "layers are 0 to 5"),
    ],
)
def test_what_cannot_be_composed(make_it: Any, message: str) -> None:
    with pytest.raises(vp.ConfigError, match=message):
        make_it()


@pytest.mark.parametrize("looks", [vp.FastV(layer=2, keep_tokens=4), vp.FixedSchedule(layers=(1,), keep=(4,))])
def test_a_part_cannot_look_where_another_keeps_visual_rows_out(looks: vp.Pruner) -> None:
    without = vp.VisiPruner(shallow_end=3, shallow_visual="ffn", filter_layer=3, keep_tokens=2)
    with pytest.raises(vp.ConfigError, match=rf"{looks.name} looks at the attention of layer 1, .*take no part"):
        Composed(parts=(looks, without)).check(LAYERS)
    Composed(parts=(looks, replace(without, shallow_visual="prefix"))).check(LAYERS)
    Composed(parts=(looks, replace(without, shallow_end=1))).check(LAYERS)


def test_visual_tokens_that_come_in_late_cannot_be_chosen_from_before() -> None:
    late = vp.VisiPruner(shallow_end=2, shallow_visual="late", filter_layer=3, keep_tokens=4)
    with pytest.raises(vp.ConfigError, match="brings visual tokens in late"):
        Composed(parts=(DivPrune(keep_tokens=9), late)).check(LAYERS)
    alone = Composed(parts=(late,))
    alone.check(LAYERS)
    assert alone.first_layer() == 2
