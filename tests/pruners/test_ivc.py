"""Coordinates by rotary embeddings: alone, within IVC-Prune, and kept from other methods."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.models import LAYERS, llava_inputs, llava_model, prompt, text_model
from tests.pruners.plain import kept_by, largest, values_of
from visipruner.contract.pruner import Pruner
from visipruner.pruners.composed import Composed
from visipruner.pruners.fastv import FastV
from visipruner.pruners.ivc import IVC, IVCPrune
from visipruner.pruners.pool import Pool
from visipruner.pruners.random import RandomPruner
from visipruner.pruners.registry import make_from_spec, method_class
from visipruner.pruners.schedule import FixedSchedule
from visipruner.pruners.visionzip import VisionZip
from visipruner.pruners.vtw import VTW

BEFORE, VISUAL, WIDTH = 5, 40, 16  # WIDTH: of a head
ALL = list(range(VISUAL))


def _coordinates(positions: list[int], each: int, theta: float = 10000.0) -> list[int]:
    """Places of the positions whose rotary embedding is nearest to no turn, and to a quarter turn."""
    speeds = [theta ** (-2 * k / WIDTH) for k in range(WIDTH // 2)]
    found: set[int] = set()
    for wave in (math.cos, math.sin):
        found |= set(largest([sum(wave(m * speed) for speed in speeds) for m in positions], each))
    return sorted(found)


def _prompt(after: int = 6) -> tuple[Tensor, Tensor]:
    embeds, mask = prompt(before=BEFORE, visual=VISUAL, after=after)
    return embeds, mask


def test_coordinates_stay_on_top_of_anothers_budget() -> None:
    model = text_model("llama")
    embeds, mask = _prompt()
    anchors = _coordinates([BEFORE + j for j in ALL], each=4)
    assert 4 < len(anchors) < 9
    best = kept_by(model, FastV(keep_tokens=5), embeds, mask)[2]
    assert not set(anchors) <= set(best)
    kept = kept_by(model, Composed(parts=(IVC(coordinates=0.2), FastV(keep_tokens=5))), embeds, mask)
    assert kept == [ALL] * 2 + [sorted({*anchors, *best})] * (LAYERS - 1)
    assert make_from_spec("ivc+fastv") == Composed(parts=(IVC(), FastV()))


def test_alone_it_drops_nothing() -> None:
    embeds, mask = _prompt()
    assert kept_by(text_model("llama"), IVC(), embeds, mask) == [ALL] * (LAYERS + 1)


def test_coordinates_of_each_image() -> None:
    model = llava_model()
    inputs = llava_inputs([[3, 0, 2, 0, 4]])
    first, second = (_coordinates(list(range(start, start + 16)), each=2) for start in (3, 21))
    with vp.attach(model, Composed(parts=(IVC(coordinates=0.25), RandomPruner(keep_tokens=1)))) as handle:
        model(**inputs)
    drawn = {*handle.trace[0].kept[0]} - {*first, *(16 + j for j in second)}
    assert len(drawn) <= 1
    assert {*first, *(16 + j for j in second)} <= {*handle.trace[0].kept[0]}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_no_coordinate(side: str) -> None:
    model = llava_model()
    pruner = make_from_spec("ivc:coordinates=0.25+random:keep_tokens=2")
    with vp.attach(model, pruner) as handle, torch.no_grad():
        model(**llava_inputs([[3, 0, 4]]))
        alone = handle.trace[0].kept[0]
        model(**llava_inputs([[3, 0, 4], [2, 0, 9]], padding_side=side))
        assert handle.trace[0].kept[0] == alone


@pytest.mark.parametrize("other", [VTW(layer=3), FixedSchedule(layers=(2,), keep=(0,))], ids=lambda part: part.name)
def test_when_all_leave_coordinates_leave(other: Pruner) -> None:
    embeds, mask = _prompt()
    kept = kept_by(text_model("llama"), Composed(parts=(IVC(), other)), embeds, mask)
    assert kept[2] == ALL
    assert kept[3] == []


@pytest.mark.parametrize("merging", [Pool(stride=4), VisionZip(keep_tokens=4)], ids=lambda part: part.name)
def test_protected_tokens_are_what_they_were_beside_merged_ones(merging: Pruner) -> None:
    model = llava_model()
    inputs = llava_inputs([[3, 0, 4]])
    entered: list[Tensor] = []
    hook = model.model.language_model.layers[0].input_layernorm.register_forward_pre_hook(
        lambda _module, args: entered.append(args[0][0])
    )
    kept = []
    for pruner in (vp.NoPruning(), merging, Composed(parts=(IVC(coordinates=0.25), merging))):
        with vp.attach(model, pruner) as handle, torch.no_grad():
            model(**inputs)
        kept.append(handle.trace[0].kept[0])
    hook.remove()
    plain, alone, both = entered
    anchors = _coordinates(list(range(3, 19)), each=2)
    assert kept[2] == sorted({*kept[1], *anchors})
    for place, token in enumerate(kept[2]):
        expected = alone[3 + kept[1].index(token)] if token in kept[1] else plain[3 + token]
        torch.testing.assert_close(both[3 + place], expected)


@pytest.mark.parametrize(
    "name", ["fastv", "capa", "pyramiddrop", "sparsevlm", "feather", "dart", "priortr", "divprune"]
)
def test_coordinates_with_any_method(name: str) -> None:
    """What they keep is in every layer, and cached decoding is one full forward."""
    model = llava_model()
    inputs = llava_inputs([[4, 0, 7]])
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    anchors = _coordinates(list(range(4, 20)), each=2)
    other: Any = method_class(name).for_depth(LAYERS)
    other = replace(other, keep_ratio=0.7) if name == "feather" else other  # whose published second stage keeps none
    pruner = Composed(parts=(IVC(coordinates=0.25), other))
    with vp.attach(model, pruner) as handle:
        cached = model.generate(**inputs, **settings)
        kept = handle.trace[0].kept
        uncached = model.generate(**inputs, **settings, use_cache=False)
    assert all(set(anchors) <= set(tokens) for tokens in kept)
    assert len(kept[-1]) < 16
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("after", [1, 2, 6])
@pytest.mark.parametrize("kind", ["llama", "llama-mha"])
def test_ivc_prune(kind: str, after: int) -> None:
    model = text_model(kind)
    embeds, mask = _prompt(after)
    pruner = IVCPrune(layer=3, keep_tokens=12, coordinates=0.1, seeds=0.05)
    kept = kept_by(model, pruner, embeds, mask)
    values = values_of(model, embeds)[2].double()
    n = BEFORE + VISUAL + after
    asking = list(range(BEFORE + VISUAL + (2 if after > 2 else 0), n))

    def alike(row: int) -> list[float]:
        heads: list[Any] = []
        for head in values:
            logits = [float(head[row] @ head[BEFORE + j]) / WIDTH**0.5 for j in ALL]
            weights = [math.exp(value - max(logits)) for value in logits]
            heads.append([weight / sum(weights) for weight in weights])
        return [sum(column) / len(heads) for column in zip(*heads, strict=True)]

    asked = [alike(row) for row in asking]
    seeds = largest([sum(column) for column in zip(*asked, strict=True)], 2)
    foreground = [*asked, *(alike(BEFORE + j) for j in seeds)]
    first = {*_coordinates([BEFORE + j for j in ALL], each=2), *seeds}
    scores = [math.inf if j in first else sum(row[j] for row in foreground) for j in ALL]
    assert kept == [ALL] * 3 + [largest(scores, 12)] * (LAYERS - 2)


def test_coordinates_stay_beyond_a_budget_too_small_for_them() -> None:
    embeds, mask = _prompt()
    kept = kept_by(text_model("llama"), IVCPrune(layer=2, keep_tokens=1, coordinates=0.2), embeds, mask)
    assert set(_coordinates([BEFORE + j for j in ALL], each=4)) < set(kept[2])
