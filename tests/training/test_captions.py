"""Pictures followed by the words to learn: the first word is read from the picture's last row, which must stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.engine.cases import METHODS, SELECTS, WAYS
from tests.models import GRID, IMAGE_TOKEN, VOCAB, llava_inputs, llava_model
from tests.oracle import oracle, pruned_edit
from tests.training.test_align import STAGES, aligned
from visipruner import attach

VISUAL = GRID * GRID


def captions(layout: list[list[int]]) -> dict[str, Tensor]:
    """Prompts in which just the first word after every picture is learnt."""
    inputs = llava_inputs(layout, "right")
    ids = inputs["input_ids"]
    after = torch.zeros_like(ids, dtype=torch.bool)
    after[:, 1:] = (ids[:, :-1] == IMAGE_TOKEN) & (ids[:, 1:] != IMAGE_TOKEN)
    return {**inputs, "labels": ids.masked_fill(~after, -100)}


def check_learns(model: Any, inputs: dict[str, Tensor]) -> None:
    """The loss is not that of a guess, and moves the output embeddings, the layers and the projector."""
    loss = model(**inputs).loss
    loss.backward()
    assert abs(float(loss.detach()) - math.log(VOCAB)) > 1e-2
    layers, projector = model.model.language_model.layers, model.model.multi_modal_projector
    for part in (model.lm_head, layers[0].mlp, layers[-1].mlp, projector):
        assert any(bool(weight.grad.any()) for weight in part.parameters() if weight.grad is not None), part


@pytest.mark.parametrize("layout", [[[2, 0, 4]], [[0, 3]], [[2, 0, 3, 0, 2], [3, 0, 4]]], ids=str)
@pytest.mark.parametrize("pruner", WAYS)
def test_the_first_word_after_a_picture_is_learnt(pruner: str, layout: list[list[int]]) -> None:
    model, inputs = llava_model(), captions(layout)
    with attach(model, WAYS[pruner]) as handle:
        check_learns(model, inputs)
        images = [example.count(0) for example in layout]
        assert [example.num_visual for example in handle.trace.examples] == [(VISUAL - 1) * n for n in images]
        assert [example.tokens_per_image for example in handle.trace.examples] == [[VISUAL - 1] * n for n in images]


@pytest.mark.parametrize("pruner", SELECTS)
def test_its_row_is_a_row_of_text_to_every_method(pruner: str) -> None:
    """Against the full-length model with the edges to the dropped rows cut."""
    model, inputs = llava_model(), captions([[2, 0, 4]])
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    with attach(model, SELECTS[pruner]) as handle, torch.no_grad():
        logits = model(**inputs).logits[0]
    visual[2 + VISUAL - 1] = False
    with oracle(model, pruned_edit(visual, handle.trace[0].kept, SELECTS[pruner])), torch.no_grad():
        given = {name: part for name, part in inputs.items() if name not in ("labels", "attention_mask")}
        expected = model(**given, use_cache=False).logits[0]
    torch.testing.assert_close(logits[~visual], expected[~visual], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip"])
def test_methods_that_look_at_the_tower_find_the_shorter_picture(name: str) -> None:
    """Adjacent pictures, which the tower alone tells apart; the first of them is whole."""
    model, inputs = llava_model(), captions([[2, 0, 0, 3]])
    with attach(model, METHODS[name]) as handle:
        model(**inputs)
    assert handle.trace[0].tokens_per_image == [VISUAL, VISUAL - 1]


def test_a_picture_before_words_that_are_not_learnt_is_whole() -> None:
    model, inputs = llava_model(), captions([[2, 0, 4]])
    labels = inputs["labels"].roll(1)  # the second word
    with attach(model, vp.FastV()) as handle:
        for given in (inputs | {"labels": labels}, {**inputs, "labels": None}):
            model(**given)
            assert handle.trace[0].num_visual == VISUAL
        model(**inputs)
        model.model(**{name: part for name, part in inputs.items() if name != "labels"})
        assert handle.trace[0].num_visual == VISUAL, "labels are those of one call"


@pytest.mark.parametrize("stage", STAGES)
def test_aligned_models_learn_the_first_word(stage: str) -> None:
    model = aligned(**STAGES[stage][0]).train()
    model.visual_gates.progress = 1.0
    check_learns(model, captions([[2, 0, 4]]))
    assert model.trace[0].num_visual == VISUAL - 1
