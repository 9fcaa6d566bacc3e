"""Who is in play: the rows and visual tokens of a batch that are still there, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visipruner.contract.layout import TokenLayout
from visipruner.contract.routing import Routing
from visipruner.engine.rows import Rows


@dataclass(frozen=True, eq=False)
class Waiting:
    """Visual rows that do not run: `states` `[1, n, d]` of `rows`, which have the positions of the host rows `placed`.

    `tokens` are their numbers, per example; `is_seen`: text rows attend to them all the same.
    """

    rows: Rows
    placed: Rows
    states: Tensor
    tokens: list[Tensor]
    is_seen: bool

    def to(self, device: torch.device) -> Waiting:
        """The same with its tensors on `device`."""
        tokens = [part.to(device) for part in self.tokens]
        return Waiting(self.rows.to(device), self.placed.to(device), self.states.to(device), tokens, self.is_seen)


class Present:
    """Rows of a batch of prompts that have not been dropped.

    Attributes:
        layouts: one per example.
        rows: rows that the current layer runs. attending: those of them that take part in its self-attention.
        placed: the host rows whose positions they have: their own, but for rows that closed a gap (see `drop`).
        tokens: per example `[k]` long, the visual tokens still present (indices among the prompt's).
        is_packed: False until something is dropped or routed; the host's own layout is used so long.
        has_dropped: tokens were dropped that the rows still hold; the next layer must repack.
        is_waiting: the visual rows do not run; where they are not even seen, `tokens` is empty so long.
    """

    def __init__(self, layouts: Sequence[TokenLayout], seq: int) -> None:
        self.layouts, self._seq = list(layouts), seq
        self.rows = self.attending = self.placed = Rows(tuple(layout.real for layout in layouts), seq)
        self.tokens = [torch.arange(len(layout.visual), device=layout.visual.device) for layout in layouts]
        self._is_visual = [_flags(layout.visual, seq) for layout in layouts]
        self.is_packed = self.has_dropped = self.is_waiting = False
        self._closed = [torch.zeros_like(visual) for visual in self._is_visual]
        self._waiting: Waiting | None = None
        self._first = 0

    def to(self, device: torch.device) -> None:
        """Goes on on the device that the next layer runs on."""
        if self.layouts[0].real.device == device:
            return
        self.layouts = [layout.to(device) for layout in self.layouts]
        moved = {rows: rows.to(device) for rows in (self.rows, self.attending, self.placed)}  # they may be one object
        self.rows, self.attending, self.placed = (moved[rows] for rows in (self.rows, self.attending, self.placed))
        self.tokens = [tokens.to(device) for tokens in self.tokens]
        self._is_visual = [flags.to(device) for flags in self._is_visual]
        self._closed = [flags.to(device) for flags in self._closed]
        self._waiting = None if self._waiting is None else self._waiting.to(device)

    @property
    def waiting(self) -> Waiting:
        """The visual rows that do not run now."""
        assert self._waiting is not None
        return self._waiting

    def hold_back(self, hidden: Tensor, is_seen: bool) -> Tensor:
        """Visual rows wait, as they are in `hidden`, for `bring_in`; returns the text rows' states, packed.

        `is_seen`: their tokens stay present, as keys of text rows.
        """
        if self.has_dropped:
            hidden = self.repack(hidden)
        visual = Rows(
            tuple(layout.visual[tokens] for layout, tokens in zip(self.layouts, self.tokens, strict=True)), self._seq
        )
        states = hidden.index_select(1, visual.within(self.rows)) if self.is_packed else _all_of(visual, hidden)
        self._waiting = Waiting(visual, self._places_of(visual), states, self.tokens, is_seen)
        empty = [tokens[:0] for tokens in self.tokens]
        self.is_waiting = True
        hidden = self._pack(hidden, empty)
        if not is_seen:
            self.tokens = empty
        return hidden

    def bring_in(self, hidden: Tensor) -> Tensor:
        """Text rows' states, packed, joined by those of the visual rows that waited, at their places. Tokens that were
        dropped meanwhile come with them, and leave at the next `repack`."""
        held, self._waiting = self.waiting, None
        before = self.rows
        if not held.is_seen:
            self.tokens = held.tokens
        self.rows = Rows(self._index(held.tokens), self._seq)
        self.placed = self._places_of(self.rows)
        self.is_waiting = False
        place = before.flat.new_zeros(len(self.tokens) * self._seq)
        joined = torch.cat([before.flat, held.rows.flat])
        place[joined] = torch.arange(joined.numel(), device=place.device)
        return torch.cat([hidden, held.states], dim=1).index_select(1, place[self.rows.flat])

    def drop(self, example: int, kept: Tensor, closed: Tensor) -> None:
        """Keeps the visual tokens at positions `kept` among those present; the others leave before the next layer.

        `closed`, numbers of some that leave: no gap stays where they were. Rotary positions tell differences only, so
        the rows before them move up, and not those after them down: what follows goes on at the unpruned length.
        """
        if kept.numel() < self.tokens[example].numel():
            self.tokens[example] = self.tokens[example][kept]
            self._closed[example][self.layouts[example].visual[closed]] = True
            self.has_dropped = True

    def repack(self, hidden: Tensor) -> Tensor:
        """Hidden states of the rows that remain, packed; `[batch, seq, d]` or packed before."""
        return self._pack(hidden, self.tokens)

    def _index(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Per example the rows that run where `tokens` do."""
        index = []
        for layout, own, visual in zip(self.layouts, tokens, self._is_visual, strict=True):
            alive = ~visual
            alive[layout.visual[own]] = True
            index.append(layout.real[alive[layout.real] & (layout.real >= self._first)])
        return tuple(index)

    def _pack(self, hidden: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        rows = Rows(self._index(tokens), self._seq)
        hidden = hidden.index_select(1, rows.within(self.rows)) if self.is_packed else rows.gather(hidden, -2)
        self.rows, self.is_packed, self.has_dropped = rows, True, False
        self.placed = self._places_of(rows)
        return hidden

    def _places_of(self, rows: Rows) -> Rows:
        if not any(bool(closed.any()) for closed in self._closed):
            return rows
        index = []
        for layout, mine, closed in zip(self.layouts, rows.index, self._closed, strict=True):
            closed_after = closed.sum() - closed.cumsum(0)[mine]
            index.append(layout.real[torch.searchsorted(layout.real, mine) + closed_after])
        return Rows(tuple(index), self._seq)

    def fold(self, length: int, hidden: Tensor) -> Tensor:
        """Lets the first `length` host rows rest: they do not run until `unfold`. Of a single example only."""
        self._first = length
        return self.repack(hidden)

    def unfold(self, resting: Tensor, hidden: Tensor) -> Tensor:
        """The rows that rested run again, with states `resting` `[1, n, d]`; none of them has been dropped."""
        self._first = 0
        self.rows = self.placed = Rows((self.layouts[0].real,), self._seq)
        return torch.cat([resting, hidden], dim=1)

    def route(self, routing: Routing) -> None:
        """Sets which of the packed rows attend in a layer of this routing."""
        self.attending = self.rows
        if not self.is_packed or routing.visual_rows_attend:
            return
        index = []
        for rows, visual in zip(self.rows.index, self._is_visual, strict=True):
            attends = ~visual[rows]
            if routing.sink:
                attends[visual[rows].nonzero().flatten()[:1]] = True
            index.append(rows[attends])
        self.attending = Rows(tuple(index), self._seq)

    def visual_flags(self, example: int) -> Tensor:
        """`[n]` bool: which of an example's attending rows are visual."""
        return self._is_visual[example][self.attending.index[example]]

    def visual_among(self, example: int) -> Tensor:
        """`[n]` bool: which of an example's rows are visual tokens present."""
        rows = self.rows.index[example]
        return self._is_visual[example][rows]

    def places(self, example: int) -> Tensor:
        """`[n]` long: where an example's rows are in the hidden states, all examples' flattened to one list."""
        rows = self.rows.index[example]
        if not self.is_packed:
            return rows + example * self._seq
        start = sum(self.rows.lengths[:example])
        return torch.arange(start, start + rows.numel(), device=rows.device)

    def text_places(self, with_sink: bool = False) -> Tensor:
        """Places of text rows among the packed attending rows of all examples; of every first visual row too."""
        wanted = []
        for example in range(len(self.tokens)):
            visual = self.visual_flags(example)
            text = ~visual
            if with_sink:
                text[visual.nonzero().flatten()[:1]] = True
            wanted.append(text)
        return torch.cat(wanted).nonzero().flatten()


def _all_of(rows: Rows, hidden: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, rows.flat).unsqueeze(0)


def _flags(rows: Tensor, length: int) -> Tensor:
    flags = torch.zeros(length, dtype=torch.bool, device=rows.device)
    flags[rows] = True
    return flags
