"""One forward over the rows of many requests, in which visual rows leave. Nothing here knows vLLM.

Rows lie one request after another, `[rows, d_model]`; of each request the rows that this forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visipruner.contract.entry_view import EntryView, Merge, Project
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import PromptRun
from visipruner.errors import VisiPrunerError
from visipruner.integrations.vllm.request import Request

QKV = tuple[Tensor, Tensor, Tensor]
# Rows of the forward [n] -> what runs a layer's projections ahead for some of them.
Projector = Callable[[Tensor], Project]


class MethodError(VisiPrunerError):
    """A method's answer makes no sense."""


@dataclass(eq=False)
class Step:
    """One forward.

    Attributes:
        ids, requests: in the order of their rows.
        ran: `[requests]`, rows that each had run before this forward. lengths: rows that each brings to it.
        present: the same of the rows still in play; `gone`: `[requests, layers]`, rows that caches do not hold.
        rows: `[present rows]` long, which of the forward's rows they are, or None for all of them.
        failed: errors of methods, by request.
    """

    ids: Sequence[str]
    requests: Sequence[Request]
    ran: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rows: Tensor | None = None
    failed: dict[str, Exception] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.present = self.lengths.copy()
        self.gone = np.stack([request.gone for request in self.requests])

    @property
    def is_plain(self) -> bool:
        """Whether every row runs in every layer and finds every key in its cache: nothing of ours to do."""
        return not (self.is_read or self.gone.any())

    @property
    def is_read(self) -> bool:
        """Whether visual rows may leave in this forward."""
        return any(request.is_read for request in self.requests)

    def observes_entry(self, layer: int) -> bool:
        return any(r.is_read and r.run is not None and r.run.observes_entry(layer) for r in self.requests)

    def observes(self, layer: int) -> bool:
        return any(r.is_read and r.run is not None and r.run.observes(layer) for r in self.requests)

    def select_entry(self, layer: int, states: Tensor, projector: Projector) -> tuple[Tensor | None, Tensor]:
        """Asks the methods that look at the `states` `[rows, d_model]` about to enter `layer`.

        Returns the rows that stay (see `_cut`), and all rows' states, new where tokens were merged.
        """
        stays = torch.ones(len(states), dtype=torch.bool, device=states.device)
        for place, request, run, start in self._asked(lambda run: run.observes_entry(layer)):
            rows = torch.arange(start, start + request.rows_present, device=states.device)
            columns = request.columns()
            view = EntryView(states[rows], columns, request.tokens, request.layout, projector(rows), None)
            with self._failing(place):
                answer = run.select_entry(layer, view)
                if isinstance(answer, Merge):
                    kept = checked(answer.kept, len(columns))
                    states = states.index_copy(0, rows[columns[kept]], answer.states.to(states))
                    answer = kept
                self._leave(place, layer, answer, rows[columns], stays)
        return self._cut(stays), states

    def select(self, layer: int, qkv: QKV, scaling: float, softcap: float | None) -> Tensor | None:
        """Asks the methods that look at the attention of `layer`; what they drop leaves before the next.

        `qkv`: `[rows, heads or kv_heads, head_dim]`, after RoPE. Returns the rows that stay (see `_cut`).
        """
        queries, keys, values = (part.transpose(0, 1) for part in qkv)
        stays = torch.ones(queries.shape[1], dtype=torch.bool, device=queries.device)
        for place, request, run, start in self._asked(lambda run: run.observes(layer)):
            rows = torch.arange(request.rows_present, device=queries.device)
            span, columns = slice(start, start + len(rows)), request.columns()
            view = LayerView(
                queries[:, span],
                keys[:, span],
                values[:, span],
                rows,
                rows,
                columns,
                request.tokens,
                request.layout,
                scaling,
                partial(_causal, rows),
                softcap,
            )
            with self._failing(place):
                self._leave(place, layer + 1, run.select(layer, view), columns + start, stays)
        return self._cut(stays)

    def in_play(self, per_row: Tensor, dim: int = 0) -> Tensor:
        """Of something that has an entry for every row of the forward, those of the rows in play."""
        return per_row if self.rows is None else per_row.index_select(dim, self.rows)

    def scattered(self, states: Tensor, count: int) -> Tensor:
        """`[count, d_model]`: rows in play back at their places, zeros elsewhere."""
        if self.rows is None:
            return states
        return states.new_zeros(count, *states.shape[1:]).index_copy(0, self.rows, states)

    def _asked(self, wants: Callable[[PromptRun], bool]) -> Iterator[tuple[int, Request, PromptRun, int]]:
        """Requests whose method wants to look: where they are in the batch, and their first row."""
        starts = np.cumsum(self.present) - self.present
        for place, request in enumerate(self.requests):
            if request.is_read and request.run is not None and wants(request.run):
                yield place, request, request.run, int(starts[place])

    @contextmanager
    def _failing(self, place: int) -> Iterator[None]:
        """What a method raises is noted; its request goes on as it is, for it must not hurt the others."""
        try:
            yield
        except Exception as error:
            self.failed[self.ids[place]] = error
            self.requests[place].run = None

    def _leave(self, place: int, layer: int, kept: Tensor | None, rows: Tensor, stays: Tensor) -> None:
        """Follows a method's answer; `rows` are the visual ones among those in play, `stays` is written to."""
        if kept is None:
            return
        kept = checked(kept, len(rows))
        self.requests[place].drop(layer, kept)
        self.present[place] -= len(rows) - len(kept)
        stays[rows] = False
        stays[rows[kept]] = True

    def _cut(self, stays: Tensor) -> Tensor | None:
        """`[k]` long, which of the rows in play stay; None where all do."""
        if int(self.present.sum()) == len(stays):
            return None
        index = stays.nonzero().flatten()
        self.rows = index if self.rows is None else self.rows[index]
        self.gone = np.stack([request.gone for request in self.requests])
        return index


def checked(kept: Tensor, count: int) -> Tensor:
    """A method's answer; a wrong one would end a GPU's whole process later. Raises MethodError."""
    sound = kept.ndim == 1 and kept.dtype == torch.long
    if sound and len(kept):
        sound = bool((kept.diff() > 0).all() & (kept[0] >= 0) & (kept[-1] < count))
    if not sound:
        raise MethodError(f"The method's answer is no ascending list of positions among {count} visual tokens: {kept}.")
    return kept


def _causal(rows: Tensor, which: Tensor) -> Tensor:
    """`[len(which), n]` bool: rows of a prompt see those before them and themselves."""
    return rows[None] <= which[:, None]
