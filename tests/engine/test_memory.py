"""What the engine holds on to: hidden states while layers run, and what is left of a prompt once it was read.

Counted in Python's own objects, which hold every tensor of the engine where no gradient is recorded.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import visipruner as vp
from tests.engine.cases import PRUNERS, WAYS, generate
from tests.models import llava_inputs, llava_model


@pytest.fixture
def counted_by_references() -> Iterator[None]:
    """What is let go is gone at once; no garbage collection helps."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _rows_alive(width: int) -> dict[int, int]:
    """Rows of hidden states `[batch, seq, d]` or `[n, d]` in every storage that some tensor of Python's is in."""
    found: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of lazy modules that are only looked at
        tensors = [part for part in gc.get_objects() if type(part) is Tensor]
    for part in tensors:
        if part.ndim in (2, 3) and part.shape[-1] == width and part.is_floating_point():
            storage = part.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes() // (part.element_size() * width)
    return found


def _layer_by_layer(model: Any, inputs: dict[str, Any]) -> list[tuple[int, int]]:
    """By layer: rows alive beyond those alive before the prompt, and rows that the layer is given."""
    decoder = model.get_decoder()
    width, seen = decoder.config.hidden_size, []
    before: dict[int, int] = {}

    def look(_module: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        alive = {place: rows for place, rows in _rows_alive(width).items() if place not in before}
        seen.append((sum(alive.values()), hidden.shape[0] * hidden.shape[1]))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in decoder.layers]
    before = _rows_alive(width)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.usefixtures("counted_by_references")
@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("layouts", [[[5, 0, 2, 0, 4]], [[3, 0, 9], [5, 0, 2, 0, 4]]], ids=["one", "batch"])
def test_no_hidden_states_beyond_those_of_the_plain_model(pruner: str, layouts: list[list[int]]) -> None:
    """Where rows leave or pause, the host itself still holds what the layer before gave, until this one is through."""
    model, inputs = llava_model(), llava_inputs(layouts)
    plain = _layer_by_layer(model, inputs)
    with vp.attach(model, PRUNERS[pruner]) as handle:
        ours = _layer_by_layer(model, inputs)
    assert len(ours) == len(plain) == len(handle.trace[0].query_lengths)
    given_before = plain[0][1]
    for (held, given), (held_plain, _) in zip(ours, plain, strict=True):
        assert held <= held_plain + (max(given, given_before) if given != given_before else 0)
        given_before = given
    assert ours[-1][1] < plain[-1][1] or pruner == "shallow-only", "rows must leave for this to test anything"


@pytest.mark.usefixtures("counted_by_references")
@pytest.mark.parametrize("pruner", WAYS)
def test_nothing_but_numbers_is_left_of_a_prompt(pruner: str) -> None:
    """Once its answer is let go, a prompt's trace holds no row of it, and the next prompt ends the trace."""
    model, inputs = llava_model(), llava_inputs([[3, 0, 9]])
    width = model.get_decoder().config.hidden_size
    with vp.attach(model, WAYS[pruner]) as handle:
        before = _rows_alive(width)
        generate(model, 2, **inputs)
        left = {place: rows for place, rows in _rows_alive(width).items() if place not in before}
        assert not left
        trace = weakref.ref(handle.trace)
        assert trace() is not None
        generate(model, 2, **inputs)
        assert trace() is None
