"""Self-attention, and its key and value projections, on fewer rows than the layer has: nobody reads the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from visipruner.contract.routing import PLAIN, Needed, Routing
from visipruner.engine.calls import narrowed_within
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.rows import Rows


class Projection:
    """Which of a layer's rows its attention, its keys and its values are computed for; of one session."""

    def __init__(self, live: LiveRows) -> None:
        self._live, self._routing, self._is_looked_at = live, PLAIN, False
        self._within: tuple[Rows | None, Tensor | None, Tensor | None] = (None, None, None)
        self._narrowed: dict[str, Any] = {}

    def enter(self, routing: Routing, is_looked_at: bool) -> None:
        """A layer of this routing begins; a pruner that looks at it is shown every key and value."""
        self._routing, self._is_looked_at = routing, is_looked_at

    @property
    def attends_partly(self) -> bool:
        """True when some of the layer's rows take no part in its self-attention."""
        return self._live.attending is not self._live.rows

    def enter_attention(self, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows self-attention's inputs from the layer's rows to those that attend."""
        where, _ = self._places()
        return hidden.index_select(1, where), {**kwargs, **narrowed_within(kwargs, where, self._narrowed)}

    def leave_attention(self, output: Tensor) -> Tensor:
        """Attention's output for all the layer's rows: zero for visual rows, the sink's own row included."""
        _, where = self._places()
        full = output.new_zeros(1, self._live.rows.total, output.shape[-1])
        return full.index_copy_(1, where, output.index_select(1, self._live.text_places()))

    def _places(self) -> tuple[Tensor, Tensor]:
        """Where the attending rows, and the text rows among them, are among the layer's rows."""
        attending, where, text = self._within
        if attending is not self._live.attending or where is None or text is None:
            where = self._live.attending.within(self._live.rows)
            text = where[self._live.text_places()]
            self._within = (self._live.attending, where, text)
        return where, text

    def enter_projection(self, needed: Needed, hidden: Tensor) -> Tensor | None:
        """Before the key or value projection: only text rows and the visual rows that some row attends to."""
        if self._projects_all(needed):
            return None
        return hidden.index_select(1, self._live.text_places(with_sink=needed == "sink"))

    def leave_projection(self, needed: Needed, output: Tensor) -> Tensor | None:
        """After it: back to `[1, n, d_kv]`, with zeros that no kernel will use."""
        if self._projects_all(needed):
            return None
        full = output.new_zeros(1, self._live.attending.total, output.shape[-1])
        return full.index_copy_(1, self._live.text_places(with_sink=needed == "sink"), output)

    def rows(self, needed: Needed, example: int, visual: int) -> int:
        """Rows of an example that a projection runs; `visual` of those that attend are visual."""
        attending = self._live.attending.lengths[example]
        if self._projects_all(needed):
            return attending
        return attending - visual + (1 if needed == "sink" and visual else 0)

    def _projects_all(self, needed: Needed) -> bool:
        return needed == "all" or self._is_looked_at or not self._routing.visual_rows_attend
