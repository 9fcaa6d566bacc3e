"""Which rows of the prompts run in the current layer, and which of their visual tokens are left.

Text rows all stay, so everything follows from the visual tokens kept. What follows is computed where tokens leave, and
every layer until the next change uses it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from visipruner.contract.layout import TokenLayout
from visipruner.contract.routing import Routing
from visipruner.engine.rows import Rows

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Paused:
    """Visual rows that do not run: `states` `[1, n, d]` of `rows`, which have the positions of the host rows `placed`.

    `tokens` are their numbers, per example; `is_seen`: text rows attend to them all the same.
    """

    rows: Rows
    placed: Rows
    states: Tensor
    tokens: list[Tensor]
    is_seen: bool

    def to(self, device: torch.device) -> Paused:
        """The same with its tensors on `device`."""
        tokens = [part.to(device) for part in self.tokens]
        return Paused(self.rows.to(device), self.placed.to(device), self.states.to(device), tokens, self.is_seen)


class LiveRows:
    """Rows of a batch of prompts that have not been dropped.

    Attributes:
        layouts: one per example.
        rows: rows that the current layer runs. attending: those of them that take part in its self-attention.
        placed: the host rows whose positions they have: their own, but for rows that closed a gap (see `drop`).
        tokens: per example `[k]` long, the visual tokens still present (indices among the prompt's).
        is_packed: False until something is dropped or routed; the host's own layout is used so long.
        has_dropped: tokens were dropped that the rows still hold; the next layer must repack.
        is_paused: the visual rows do not run; where they are not even seen, `tokens` is empty so long.
    """

    def __init__(self, layouts: Sequence[TokenLayout], seq: int) -> None:
        self.layouts, self._seq = list(layouts), seq
        self.rows = self.attending = self.placed = Rows(tuple(layout.real for layout in layouts), seq)
        self.tokens = [torch.arange(len(layout.visual), device=layout.visual.device) for layout in layouts]
        self.is_packed = self.has_dropped = self.is_paused = False
        self._closed: list[list[Tensor]] = [[] for _ in layouts]
        self._paused: Paused | None = None
        self._first = 0
        self._known: dict[object, tuple[Rows, Any]] = {}
        self._apart: dict[
            bool, tuple[Rows, Rows]
        ] = {}  # rows that attend where visual ones do not, by whether a sink does

    def to(self, device: torch.device) -> None:
        """Goes on on the device that the next layer runs on."""
        if self.layouts[0].real.device == device:
            return
        self.layouts = [layout.to(device) for layout in self.layouts]
        moved = {rows: rows.to(device) for rows in (self.rows, self.attending, self.placed)}  # they may be one object
        self.rows, self.attending, self.placed = (moved[rows] for rows in (self.rows, self.attending, self.placed))
        self.tokens = [tokens.to(device) for tokens in self.tokens]
        self._closed = [[part.to(device) for part in closed] for closed in self._closed]
        self._paused = None if self._paused is None else self._paused.to(device)

    # ---- rows leave -------------------------------------------------------------------------------------------------

    def drop(self, example: int, kept: Tensor, closed: Tensor | None) -> None:
        """Keeps the visual tokens at positions `kept` among those present; the others leave before the next layer.

        `closed`, numbers of some that leave: no gap stays where they were. Rotary positions tell differences only, so
        the rows before them move up, and not those after them down: what follows goes on at the unpruned length.
        """
        if kept.numel() < self.tokens[example].numel():
            self.tokens[example] = self.tokens[example][kept]
            self.has_dropped = True
            if closed is not None and closed.numel():
                self._closed[example].append(self.layouts[example].visual[closed])

    def repack(self, hidden: Tensor) -> Tensor:
        """Hidden states of the rows that remain, packed; `[batch, seq, d]` or packed before."""
        return self._pack(hidden, self.tokens)

    def _pack(self, hidden: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        rows = Rows(self._index(tokens), self._seq)
        hidden = hidden.index_select(1, rows.within(self.rows)) if self.is_packed else rows.gather(hidden, -2)
        self.rows, self.is_packed, self.has_dropped = rows, True, False
        self.placed = self._places_of(rows)
        return hidden

    def _index(self, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Per example the rows that run where `tokens` do."""
        return tuple(map(self._with_text, self.layouts, tokens))

    def _with_text(self, layout: TokenLayout, tokens: Tensor) -> Tensor:
        if self._first:
            rows = torch.cat([layout.text, layout.visual[tokens]]).sort().values
            return rows[rows >= self._first]
        if tokens.numel() == layout.visual.numel():
            return layout.real
        if not tokens.numel():
            return layout.text
        return torch.cat([layout.text, layout.visual[tokens]]).sort().values

    def _places_of(self, rows: Rows) -> Rows:
        if not any(self._closed):
            return rows
        index = []
        for layout, mine, closed in zip(self.layouts, rows.index, self._closed, strict=True):
            gaps = torch.cat([mine[:0], *closed]).sort().values
            after = gaps.numel() - torch.searchsorted(gaps, mine, right=True)
            index.append(layout.real[torch.searchsorted(layout.real, mine) + after])
        return Rows(tuple(index), self._seq)

    # ---- rows pause -------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> Paused:
        """The visual rows that do not run now."""
        assert self._paused is not None
        return self._paused

    def pause(self, hidden: Tensor, is_seen: bool) -> Tensor:
        """Visual rows wait, as they are in `hidden`, for `resume`; returns the text rows' states, packed.

        `is_seen`: their tokens stay present, as keys of text rows.
        """
        if self.has_dropped:
            hidden = self.repack(hidden)
        visual = Rows(
            tuple(layout.visual[tokens] for layout, tokens in zip(self.layouts, self.tokens, strict=True)), self._seq
        )
        where = visual.within(self.rows) if self.is_packed else visual.flat
        states = hidden.flatten(0, 1).index_select(0, where).unsqueeze(0)
        self._paused = Paused(visual, self._places_of(visual), states, list(self.tokens), is_seen)
        empty = [tokens[:0] for tokens in self.tokens]
        self.is_paused = True
        hidden = self._pack(hidden, empty)
        if not is_seen:
            self.tokens = empty
        return hidden

    def resume(self, hidden: Tensor) -> Tensor:
        """Text rows' states, packed, joined by those of the visual rows that waited, at their places. Tokens that were
        dropped meanwhile come with them, and leave at the next `repack`."""
        held, self._paused = self.paused, None
        before = self.rows
        if not held.is_seen:
            self.tokens = held.tokens
        self.rows = Rows(self._index(held.tokens), self._seq)
        self.placed = self._places_of(self.rows)
        self.is_paused = False
        order = torch.cat([before.flat, held.rows.flat]).argsort()
        return torch.cat([hidden, held.states], dim=1).index_select(1, order)

    # ---- the beginning of a prompt rests (image cache) --------------------------------------------------------------

    def fold(self, length: int, hidden: Tensor) -> Tensor:
        """Lets the first `length` host rows rest: they do not run until `unfold`. Of a single example only."""
        self._first = length
        return self.repack(hidden)

    def unfold(self, resting: Tensor, hidden: Tensor) -> Tensor:
        """The rows that rested run again, with states `resting` `[1, n, d]`; none of them has been dropped."""
        self._first = 0
        self.rows = self.placed = Rows((self.layouts[0].real,), self._seq)
        return torch.cat([resting, hidden], dim=1)

    # ---- where rows are ---------------------------------------------------------------------------------------------

    def route(self, routing: Routing) -> None:
        """Sets which of the packed rows attend in a layer of this routing: one object as long as the rows stay."""
        self.attending = self.rows
        if not self.is_packed or routing.visual_rows_attend:
            return
        known = self._apart.get(routing.sink)
        if known is None or known[0] is not self.rows:
            sinks = [tokens[: int(routing.sink)] for tokens in self.tokens]
            known = self._apart[routing.sink] = (self.rows, Rows(self._index(sinks), self._seq))
        self.attending = known[1]

    def visual_of(self, example: int) -> Tensor:
        """`[k]` long, host rows of an example's visual tokens that are present and run now."""
        layout, tokens = self.layouts[example], self.tokens[example]
        if self.is_paused or not tokens.numel():
            return layout.visual[:0]
        rows = layout.visual if tokens.numel() == layout.visual.numel() else layout.visual[tokens]
        return rows[rows >= self._first] if self._first else rows

    def visual_span(self, example: int) -> slice | None:
        """Where an example's visual tokens are among its real rows, if all of them are present and unbroken."""
        layout = self.layouts[example]
        real, visual = layout.on_host
        if self._first or not len(visual) or self.tokens[example].numel() != len(visual):
            return None
        if visual[-1] - visual[0] + 1 != len(visual):
            return None
        start = int(np.searchsorted(real, visual[0]))
        return slice(start, start + len(visual))

    def visual_among(self, example: int) -> Tensor:
        """`[k]` long: where an example's visual tokens are among its rows that run."""
        return self._remembered(("rows", example), self.rows, lambda: self._among(self.rows, example))

    def visual_attending(self, example: int) -> Tensor:
        """`[k]` long: where an example's visual rows are among its attending rows; the sink alone, where only it is."""
        return self._remembered(("attending", example), self.attending, lambda: self._among(self.attending, example))

    def _among(self, rows: Rows, example: int) -> Tensor:
        wanted, present = self.visual_of(example), rows.index[example]
        wanted = wanted[: present.numel() - self.text_count(example)]
        return wanted if present.numel() == self._seq else torch.searchsorted(present, wanted)

    def text_count(self, example: int) -> int:
        """Rows of an example that run and are not visual."""
        held = self.layouts[example].text
        return held.numel() if not self._first else int((held >= self._first).sum())

    def text_attending(self, example: int) -> Tensor:
        """`[n]` long: where an example's text rows are among its attending rows."""

        def found() -> Tensor:
            text = self.layouts[example].text
            text = text[text >= self._first] if self._first else text
            return torch.searchsorted(self.attending.index[example], text)

        return self._remembered(("text", example), self.attending, found)

    def places(self, example: int) -> Tensor:
        """`[n]` long: where an example's rows are in the hidden states, all examples' flattened to one list."""
        rows = self.rows.index[example]
        if not self.is_packed:
            return rows + example * self._seq if example else rows
        span = self.rows.spans[example]
        return torch.arange(span.start, span.stop, device=rows.device)

    def states(self, example: int, hidden: Tensor) -> Tensor:
        """`[n, d]`: an example's rows that run, of `hidden`."""
        if self.is_packed:
            return hidden[0, self.rows.spans[example]]
        if self.rows.lengths[example] == self._seq:
            return hidden[example]
        return hidden[example].index_select(0, self.rows.index[example])

    def on_host(self, example: int) -> tuple[np.ndarray, np.ndarray]:
        """An example's attending rows, and `[n]` bool, which of them are visual, as numbers: one read from the device,
        and only where tokens left before."""

        def read() -> tuple[np.ndarray, np.ndarray]:
            layout, attending = self.layouts[example], self.attending.index[example]
            real, visual = layout.on_host
            rows = real if attending.numel() == len(real) else attending.cpu().numpy()
            return rows, np.isin(rows, visual)

        return self._remembered(("host", example), self.attending, read)

    def text_places(self, with_sink: bool = False) -> Tensor:
        """Places of text rows among the packed attending rows of all examples; of every first visual row too."""

        def found() -> Tensor:
            none = self.tokens[0][:0]
            sinks = [tokens[:1] if with_sink else none for tokens in self.tokens]
            return Rows(self._index(sinks), self._seq).within(self.attending)

        return self._remembered(("places", with_sink), self.attending, found)

    def visual_places(self) -> tuple[Tensor, Sequence[int]]:
        """`[k]` long, places of visual rows among the packed attending rows of all examples, and how many each has."""

        def found() -> tuple[Tensor, Sequence[int]]:
            parts = [self.visual_attending(example) for example in range(len(self.layouts))]
            starts = [span.start for span in self.attending.spans]
            places = [part + start if start else part for part, start in zip(parts, starts, strict=True)]
            return torch.cat(places), [len(part) for part in parts]

        return self._remembered("visual places", self.attending, found)

    def sink_bias(self, example: int) -> Tensor:
        """`[n]`: of the attending rows, log(n_v) on the sink, for it stands for the mass of all n_v visual rows."""
        count = math.log(max(1, self.tokens[example].numel()))
        none = torch.zeros(self.attending.lengths[example], device=self.attending.flat.device)
        return none.index_fill(0, self.visual_attending(example), count)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What `make` gives, which stays the same as long as the rows do."""
        return self._remembered(key, self.rows, make)

    def _remembered(self, key: object, rows: Rows, make: Callable[[], T]) -> T:
        known = self._known.get(key)
        if known is None or known[0] is not rows:
            known = self._known[key] = (rows, make())
        found: T = known[1]
        return found
