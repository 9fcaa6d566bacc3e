"""Who is in play: the rows and visual tokens of a batch that are still there, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visipruner.engine.routing import Routing
from visipruner.engine.rows import Rows
from visipruner.layout import TokenLayout


class Present:
    """Rows of a batch of prompts that have not been dropped.

    Attributes:
        rows: rows that the current layer runs. attending: those of them that take part in its self-attention.
        placed: the host rows whose positions they have: their own, but for rows that closed a gap (see `drop`).
        tokens: per example `[k]` long, the visual tokens still present (indices among the prompt's).
        is_packed: False until something is dropped or routed; the host's own layout is used so long.
        has_dropped: tokens were dropped that the rows still hold; the next layer must repack.
        is_waiting: the visual rows have not come in yet; until then `tokens` is empty.
    """

    def __init__(self, layouts: Sequence[TokenLayout], seq: int) -> None:
        self._layouts, self._seq = layouts, seq
        self.rows = self.attending = self.placed = Rows(tuple(layout.real for layout in layouts), seq)
        self.tokens = [torch.arange(len(layout.visual), device=layout.visual.device) for layout in layouts]
        self._is_visual = [_flags(layout.visual, seq) for layout in layouts]
        self.is_packed = self.has_dropped = self.is_waiting = False
        self._closed = [torch.zeros_like(visual) for visual in self._is_visual]
        self._waiting: tuple[Rows, Tensor] | None = None
        self._first = 0

    def hold_back(self, hidden: Tensor) -> None:
        """Before the first layer: visual rows wait, as they are in `hidden` `[batch, seq, d]`, for `bring_in`."""
        rows = Rows(tuple(layout.visual for layout in self._layouts), self._seq)
        self._waiting = rows, _all_of(rows, hidden)
        self.tokens = [tokens[:0] for tokens in self.tokens]
        self.has_dropped = self.is_waiting = True

    def bring_in(self, hidden: Tensor) -> Tensor:
        """Hidden states of text rows, packed, joined by the visual rows that waited, at their places."""
        assert self._waiting is not None
        (visual, states), self._waiting = self._waiting, None
        before = self.rows
        self.tokens = [torch.arange(len(rows), device=rows.device) for rows in visual.index]
        self.rows = self.placed = Rows(tuple(layout.real for layout in self._layouts), self._seq)
        self.is_waiting = False
        place = before.flat.new_zeros(len(self.tokens) * self._seq)
        joined = torch.cat([before.flat, visual.flat])
        place[joined] = torch.arange(joined.numel(), device=place.device)
        return torch.cat([hidden, states], dim=1).index_select(1, place[self.rows.flat])

    def drop(self, example: int, kept: Tensor, closed: Tensor) -> None:
        """Keeps the visual tokens at positions `kept` among those present; the others leave before the next layer.

        `closed`, numbers of some that leave: no gap stays where they were. Rotary positions tell differences only, so
        the rows before them move up, and not those after them down: what follows goes on at the unpruned length.
        """
        if kept.numel() < self.tokens[example].numel():
            self.tokens[example] = self.tokens[example][kept]
            self._closed[example][self._layouts[example].visual[closed]] = True
            self.has_dropped = True

    def repack(self, hidden: Tensor) -> Tensor:
        """Hidden states of the rows that remain, packed; `[batch, seq, d]` or packed before."""
        index = []
        for layout, tokens, visual in zip(self._layouts, self.tokens, self._is_visual, strict=True):
            alive = ~visual
            alive[layout.visual[tokens]] = True
            index.append(layout.real[alive[layout.real] & (layout.real >= self._first)])
        rows = Rows(tuple(index), self._seq)
        hidden = hidden.index_select(1, rows.within(self.rows)) if self.is_packed else rows.gather(hidden, -2)
        self.rows, self.is_packed, self.has_dropped = rows, True, False
        self.placed = self._places_of(rows)
        return hidden

    def _places_of(self, rows: Rows) -> Rows:
        if not any(bool(closed.any()) for closed in self._closed):
            return rows
        index = []
        for layout, mine, closed in zip(self._layouts, rows.index, self._closed, strict=True):
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
        self.rows = self.placed = Rows((self._layouts[0].real,), self._seq)
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
