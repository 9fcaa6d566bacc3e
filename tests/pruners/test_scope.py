"""Budgets for all images together and for each: what every method with a budget keeps of a prompt with several."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch

import visipruner as vp
from tests.models import IMAGE_TOKEN, LAYERS, llava_inputs, llava_model
from tests.pruners.plain import largest
from visipruner.contract.picture import PictureMethod
from visipruner.pruners.dart import Dart
from visipruner.pruners.fastv import FastV
from visipruner.pruners.pyramiddrop import PyramidDrop
from visipruner.pruners.registry import available, make, make_from_spec, method_class
from visipruner.pruners.sparsevlm import SparseVLM

SIZE = 16  # tokens of an image
OF_THE_TOWER = {"fastervlm", "hiprune", "prumerge", "scope", "visionzip", "vispruner"}
FIELDS = {name: {field.name for field in fields(method_class(name))} for name in available()}
OF_STATES = {"vcola"}  # which this model has none of; tests/pruners/test_vcola.py has its budgets
SCOPED = sorted(name for name, own in FIELDS.items() if "scope" in own and name not in OF_STATES)
MODEL_ALONE = {"random", "uniform", "divprune", *OF_THE_TOWER}  # what text there is does not matter to them


@cache
def _model() -> Any:
    return llava_model()


def _pruner(name: str, **settings: Any) -> Any:
    pruner = method_class(name).for_depth(LAYERS)
    if name.startswith("visipruner"):
        pruner = replace(pruner, shallow_end=0, filter_layer=2, keep_tokens=5)
    pruner = replace(pruner, **{"evs": {"frame_tokens": 4}, "prumerge": {"keep_ratio": 0.4}}.get(name, {}))
    return replace(pruner, **settings)


def _kept(pruner: vp.Pruner, layout: list[int], seed: int = 1, **changed: Any) -> list[list[int]]:
    inputs = {**llava_inputs([layout], seed=seed), **changed}
    with vp.attach(_model(), pruner) as handle, torch.no_grad():
        _model()(**inputs)
    return handle.trace[0].kept


def _of_image(kept: list[int], image: int) -> list[int]:
    return [token - image * SIZE for token in kept if token // SIZE == image]


def test_every_method_with_a_budget_has_a_scope() -> None:
    for name, own in FIELDS.items():
        has_budget = bool(own & {"keep_tokens", "keep_ratio", "keep_ratios"}) and not issubclass(
            method_class(name), PictureMethod
        )
        assert not has_budget or name in {*SCOPED, *OF_STATES}, name
    assert {"fastv", "divprune", "fitprune", "sparsevlm", "pyramiddrop", "visipruner"} <= set(SCOPED)


@pytest.mark.parametrize("scope", ["prompt", "image"])
@pytest.mark.parametrize("name", ["divprune", "vispruner", "visionzip"])
def test_a_budget_of_nothing_asks_nobody(name: str, scope: str) -> None:
    assert _kept(_pruner(name, scope=scope, keep_tokens=0), [3, 0, 7])[-1] == []


@pytest.mark.parametrize("name", SCOPED)
def test_one_image_keeps_what_the_prompt_keeps(name: str) -> None:
    assert _kept(_pruner(name, scope="image"), [3, 0, 7]) == _kept(_pruner(name), [3, 0, 7])


@pytest.mark.parametrize("name", sorted(set(SCOPED) - {"feather", "sparsevlm"}))
def test_every_image_keeps_its_own_budget(name: str) -> None:
    """As many of each image as of one image alone; Feather's grid and SparseVLM's merged tokens come on top."""
    alone, two = _kept(_pruner(name), [3, 0, 7]), _kept(_pruner(name, scope="image"), [3, 0, 2, 0, 7])
    assert len(alone[-1]) < SIZE
    for one, both in zip(alone, two, strict=True):
        assert [len(_of_image(both, image)) for image in (0, 1)] == [len(one)] * 2


@pytest.mark.parametrize("name", sorted(MODEL_ALONE))
def test_each_image_is_chosen_from_as_if_it_were_alone(name: str) -> None:
    pruner, both = _pruner(name, scope="image", keep_ratio=0.4), llava_inputs([[3, 0, 2, 0, 7]])
    together = _kept(pruner, [3, 0, 2, 0, 7])[-1]
    for image in (0, 1):
        pixels = both["pixel_values"][image : image + 1]
        assert _of_image(together, image) == _kept(pruner, [3, 0, 7], pixel_values=pixels)[-1]
    if name not in {"random", "uniform"}:  # a joint budget is another question
        assert _of_image(together, 0)


def test_the_best_of_each_image_against_whole_maps() -> None:
    layout = [3, 0, 2, 0, 7]
    inputs, eager = llava_inputs([layout]), llava_model("clip", "llama", "eager")
    with torch.no_grad():
        maps = eager(**inputs, output_attentions=True).attentions[1][0]
    score = maps[:, -1, inputs["input_ids"][0] == IMAGE_TOKEN].mean(0)
    joint = largest(score.tolist(), 6)
    each = largest(score[:SIZE].tolist(), 3) + [SIZE + token for token in largest(score[SIZE:].tolist(), 3)]
    assert joint != each, "the case must tell the scopes apart"
    assert _kept(FastV(keep_tokens=6), layout)[-1] == joint
    assert _kept(FastV(keep_tokens=3, scope="image"), layout)[-1] == each


def test_stages_count_from_what_each_image_had() -> None:
    pruner = PyramidDrop(layers=(1, 2, 3), keep_ratios=(0.75, 0.5, 0.125), scope="image")
    counts = [[len(_of_image(kept, image)) for image in (0, 1)] for kept in _kept(pruner, [3, 0, 2, 0, 7])]
    assert counts[:4] == [[16, 16], [12, 12], [8, 8], [2, 2]]
    sparse = SparseVLM(layers=(1, 2), keep=(288, 144), recycle_ratio=0.0, scope="image")
    counts = [[len(_of_image(kept, image)) for image in (0, 1)] for kept in _kept(sparse, [3, 0, 2, 0, 7])]
    assert counts[:4] == [[16, 16], [16, 16], [8, 8], [4, 4]]


@pytest.mark.parametrize("name", ["fastv", "dart", "divprune", "visionzip", "visipruner"])
def test_a_batch_of_unlike_prompts(name: str) -> None:
    pruner = _pruner(name, scope="image", keep_tokens=3)
    layouts = [[3, 0, 6], [7], [2, 0, 2, 0, 4]]
    inputs = llava_inputs(layouts)
    with vp.attach(_model(), pruner) as handle, torch.no_grad():
        _model()(**inputs)
    counts = [
        [len(_of_image(example.kept[-1], image)) for image in range(len(example.tokens_per_image))]
        for example in handle.trace.examples
    ]
    if name != "visipruner":
        assert counts == [[3], [], [3, 3]]
    for example, layout in zip(handle.trace.examples, layouts, strict=True):
        assert example.num_visual == SIZE * layout.count(0)


def test_what_looks_costs_are_counted_for_each_image() -> None:
    """Pairs and projected rows of the parts add up in the trace."""
    inputs = llava_inputs([[3, 0, 2, 0, 7]])
    work = []
    for scope in ("prompt", "image"):
        with vp.attach(_model(), PyramidDrop(layers=(1,), keep_ratios=(0.5,), scope=scope)) as handle:  # type: ignore[arg-type]
            _model()(**inputs)
        work.append([layer.score_pairs for layer in handle.trace[0].work])
    assert work[0] == work[1]


def test_scopes_as_settings() -> None:
    assert make_from_spec("dart:scope=image,keep_tokens=8") == Dart(scope="image", keep_tokens=8)
    with pytest.raises(vp.ConfigError, match="scope takes 'prompt' or 'image', not 'crop'"):
        make("fastv", scope="crop")
    with pytest.raises(vp.ConfigError, match="scope takes 'prompt' or 'image'"):
        FastV(scope="crop")  # type: ignore[arg-type]
