"""A layer run ahead up to its attention on some rows, and a pruner's look at the rows that enter it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView, Merge, Recurrence
from visipruner.contract.pruner import PromptRun
from visipruner.engine.attention import QKV
from visipruner.engine.calls import CACHE_NAMES, is_of_place, map_tensors, per_row, scaling_of
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.patch_table import Vision
from visipruner.engine.rows import Rows
from visipruner.errors import UnsupportedModelError

# By example, the (query, key) pairs and the rows that scores took.
EntryWork = dict[int, tuple[int, int]]


def arguments_for(rows: Rows, placed: Rows, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A layer's arguments for running ahead on some `rows`, which have the positions of those `placed`: what it is
    given for them, and neither mask nor cache."""
    given = {
        name: map_tensors(partial((placed if is_of_place(name) else rows).gather, seq_dim=dim), part)
        for name, part, dim in per_row(kwargs)
    }
    off = {name: None for name in ("attention_mask", *CACHE_NAMES) if name in kwargs}
    return {**kwargs, **given, **off, "use_cache": False}


class RunAhead(Protocol):
    """What a layer's attention would be given for hidden states `[1, n, d]`, and its keyword arguments; queries are
    zeros with `keys_only`, where the model has a map of their own for them."""

    def __call__(
        self, layer: int, hidden: Tensor, kwargs: dict[str, Any], keys_only: bool = False
    ) -> tuple[QKV, Any]: ...


class Drop(Protocol):
    """Takes visual tokens out of an example; `kept` are positions among those present."""

    def __call__(self, example: int, kept: Tensor, trigger: int) -> None: ...


class EntryLook:
    """Asks the runs of a batch before a layer.

    Attributes:
        merged: per example, `{layer: states}` that kept tokens took over on entry.
    """

    def __init__(
        self,
        live: LiveRows,
        runs: Sequence[PromptRun],
        run_ahead: RunAhead,
        recurrence: Callable[[int, Tensor], Recurrence],
        vision: Sequence[Vision | None],
    ) -> None:
        self._live, self._runs, self._vision = live, runs, vision
        self._run_ahead, self._recurrence = run_ahead, recurrence
        self.merged: list[dict[int, Tensor]] = [{} for _ in runs]

    def wanted(self, layer: int) -> list[int]:
        """Examples whose runs look at the rows that enter `layer`."""
        counts = [tokens.numel() for tokens in self._live.tokens]
        return [example for example, run in enumerate(self._runs) if counts[example] and run.observes_entry(layer)]

    def look(self, layer: int, hidden: Tensor, kwargs: dict[str, Any], drop: Drop) -> tuple[Tensor, EntryWork]:
        """Hidden states, new ones where tokens were merged, and by example the pairs and rows that scores took.

        `drop` takes out what the runs say; it is not kept, for its owner keeps this object and both would stay in
        memory until Python looks for cycles.
        """
        work: EntryWork = {}
        places: list[Tensor] = []
        states: list[Tensor] = []
        wanted = self.wanted(layer)
        views = [self._view(layer, example, self._live.states(example, hidden), kwargs) for example in wanted]
        runs = [self._runs[example] for example in wanted]
        answers = runs[0].select_entries(layer, runs, views) if runs else []
        for example, view, answer in zip(wanted, views, answers, strict=True):
            work[example] = (view.pairs, view.projected_rows)
            if isinstance(answer, Merge):
                places.append(self._live.places(example)[view.visual[answer.kept]])
                states.append(answer.states.to(hidden))
                self.merged[example][layer] = answer.states
                answer = answer.kept
            if answer is not None:
                drop(example, answer, trigger=layer - 1)
        if places:
            hidden = hidden.flatten(0, 1).index_copy(0, torch.cat(places), torch.cat(states)).view_as(hidden)
        return hidden, work

    def _view(self, layer: int, example: int, states: Tensor, kwargs: dict[str, Any]) -> EntryView:
        project, rotary = partial(self._project, layer, example, kwargs), partial(self._rotary, example, kwargs)
        tokens, layout = self._live.tokens[example], self._live.layouts[example]
        visual = self._live.visual_among(example)
        recurrence = partial(self._recurrence, layer)
        return EntryView(states, visual, tokens, layout, project, self._vision[example], rotary, recurrence)

    def _placed_from_start(self, example: int, chosen: Rows, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Rotary embeddings that `chosen` rows of an example have when it is alone, where the host counts the padding
        before it: those of the rows as many places earlier."""
        first = int(self._live.layouts[example].on_host[0][0])
        names = [name for name, *_ in per_row(kwargs) if name.startswith("position_embeddings")]
        if not first or not names:
            return {}
        earlier = Rows(tuple(part - first for part in chosen.index), chosen.seq)
        around = [part[:0] for part in chosen.index]
        around[example] = torch.arange(first - 1, min(first + 2, chosen.seq), device=earlier.flat.device)
        turns = Rows(tuple(around), chosen.seq)
        is_counted = {name: _are_even(*arguments_for(turns, turns, {name: kwargs[name]})[name]) for name in names}
        return {name: arguments_for(earlier, earlier, kwargs)[name] for name in names if is_counted[name]}

    def _given(self, example: int, kwargs: dict[str, Any], places: Tensor) -> dict[str, Any]:
        """The layer's arguments for some of an example's rows, as if it were alone."""
        chosen, placed = (self._chosen(rows, example, places) for rows in (self._live.rows, self._live.placed))
        return {**arguments_for(chosen, placed, kwargs), **self._placed_from_start(example, placed, kwargs)}

    def _chosen(self, rows: Rows, example: int, places: Tensor) -> Rows:
        """Some of an example's rows, and none of the others'."""
        index = [part[:0] for part in rows.index]
        index[example] = rows.index[example][places]
        return Rows(tuple(index), rows.seq)

    def _rotary(self, example: int, kwargs: dict[str, Any], places: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[axes, n, d]` of the rotary embeddings of some of an example's rows."""
        cos, sin = self._given(example, kwargs, places)[_rotary_names(kwargs)[0]]
        return cos.flatten(0, -3), sin.flatten(0, -3)

    def _project(
        self, layer: int, example: int, kwargs: dict[str, Any], states: Tensor, places: Tensor, rotary: bool
    ) -> tuple[Tensor, Tensor, float, float | None]:
        """Queries `[heads, n, head_dim]`, keys, logits' factor and softcap of some of an example's rows in the layer to
        come."""
        given = self._given(example, kwargs, places)
        has_none = kwargs.get("position_embeddings", given) is None  # a layer without positions
        if not rotary and not has_none:
            for name in _rotary_names(kwargs):
                cos, sin = given[name]
                given[name] = (torch.ones_like(cos), torch.zeros_like(sin))
        (queries, keys, _), used = self._run_ahead(layer, states[None], given)
        return queries[0], keys[0], scaling_of(used, queries), used.get("softcap")


def _rotary_names(kwargs: dict[str, Any]) -> list[str]:
    """Which of a layer's arguments are rotary embeddings. Raises UnsupportedModelError where none is."""
    names = [name for name, *_ in per_row(kwargs) if name.startswith("position_embeddings")]
    if not names:
        raise UnsupportedModelError(
            "The layer that this method looks at is given no rotary embeddings, which the method needs by themselves; "
            "choose another layer or method."
        )
    return names


def _are_even(cos: Tensor, sin: Tensor) -> bool:
    """Whether the last row of padding and the first two real rows `[..., 3, d]` follow each other at one distance."""
    turn = sin[..., 1:, :] * cos[..., :-1, :] - cos[..., 1:, :] * sin[..., :-1, :]
    return turn.shape[-2] == 2 and torch.allclose(turn[..., 0, :], turn[..., 1, :], atol=1e-3)
