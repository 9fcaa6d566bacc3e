"""Runs one of vLLM's decoders with fewer rows from layer to layer.

The decoder's own loop runs. For one forward each layer, and the decoder around them, is called through a function of
ours that takes out the rows a method drops; then they are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.contract.entry_view import Project
from visipruner.integrations.vllm.internals import model
from visipruner.integrations.vllm.step import QKV, Step

# Gives a layer the attention metadata of its rows.
Install = Callable[[int], None]


class _StopHere(Exception):  # noqa: N818 (nothing went wrong)
    """Ends an attention once its queries, keys and values are known."""


@contextmanager
def narrowed(decoder: nn.Module, step: Step, install: Install) -> Iterator[None]:
    """While open, `decoder` runs this one `step`."""
    layers = model.layers_of(decoder)
    forward = _Forward(step, install, layers)
    modules = [decoder, *layers]
    originals = [module.forward for module in modules]
    try:
        decoder.forward = partial(forward.run_all, originals[0])
        for number, layer in enumerate(layers):
            layer.forward = partial(forward.run_layer, number, originals[number + 1])
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)


class _Forward:
    def __init__(self, step: Step, install: Install, layers: list[nn.Module]) -> None:
        self._step, self._install, self._layers = step, install, layers

    def run_all(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The decoder: rows that left come back as zeros; nobody reads them."""
        rows = model.rows_given(args, kwargs)
        real = int(self._step.lengths.sum())
        if rows != real:  # padded for a captured graph, which does not run now
            self._step.rows = torch.arange(real, device=model.device_given(args, kwargs))
        return self._step.scattered(original(*args, **kwargs), rows)

    def run_layer(
        self,
        number: int,
        original: Callable[..., Any],
        positions: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """A layer: rows leave before it and after it. What enters is the sum of hidden states and residual."""
        step, hidden = self._step, hidden_states
        if number == 0 and step.rows is not None:
            hidden = hidden[step.rows]
        if step.observes_entry(number):
            entering = hidden if residual is None else hidden + residual
            index, states = step.select_entry(number, entering, partial(self._projector, number, positions))
            if states is not entering:
                hidden, residual = (states, None) if residual is None else (torch.zeros_like(states), states)
            hidden, residual = _cut(hidden, residual, index)
        self._install(number)
        seen = step.in_play(positions, dim=-1)
        if not step.observes(number):
            return original(seen, hidden, residual, **kwargs)  # type: ignore[no-any-return]
        attention, taken = model.attention_of(self._layers[number]), list[QKV]()
        with _attending(attention, partial(_noting, attention, attention.forward, taken)):
            hidden, residual = original(seen, hidden, residual, **kwargs)
        index = step.select(number, taken[0], *model.scaling_of(attention))
        return _cut(hidden, residual, index)

    def _projector(self, number: int, positions: Tensor, rows: Tensor) -> Project:
        """Runs the norm and the projections of a layer ahead for a request with these `rows` among those in play."""
        return partial(self._project, self._layers[number], self._step.in_play(positions, dim=-1)[..., rows])

    def _project(
        self, layer: nn.Module, positions: Tensor, states: Tensor, places: Tensor, rotary: bool
    ) -> tuple[Tensor, Tensor, float, float | None]:
        attention, taken = model.attention_of(layer), list[QKV]()
        where = positions[..., places]
        with _attending(attention, partial(_noting, attention, _stop, taken)):
            # At place 0 rotary embedding turns nothing.
            model.run_attention(layer, where if rotary else torch.zeros_like(where), states, _StopHere)
        queries, keys, _ = taken[0]
        scaling, softcap = model.scaling_of(attention)
        return queries.transpose(0, 1), keys.transpose(0, 1), scaling, softcap


def _cut(hidden: Tensor, residual: Tensor | None, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if index is None:
        return hidden, residual
    return hidden[index], None if residual is None else residual[index]


@contextmanager
def _attending(attention: nn.Module, instead: Callable[..., Any]) -> Iterator[None]:
    attention.forward = instead
    try:
        yield
    finally:
        del attention.forward


def _noting(
    attention: nn.Module, original: Callable[..., Any], taken: list[QKV], q: Tensor, k: Tensor, v: Tensor, **kwargs: Any
) -> Any:
    """An attention that notes what it is given, `[rows, heads, head_dim]`."""
    taken.append(model.by_head(attention, q, k, v))
    return original(q, k, v, **kwargs)


def _stop(*args: Any, **kwargs: Any) -> Any:
    raise _StopHere
