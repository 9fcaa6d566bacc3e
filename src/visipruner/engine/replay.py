"""Repeats what was decided for a prompt, without looking again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.pruner import PromptRun


class ReplayRun(PromptRun):
    """Follows the tokens `kept` (`[k]` long) on entry to each layer of one example, and `merged` states by layer; of
    the tokens that leave, `closed` (`[k]` long) leave no gap in the positions.

    Everything is done on entry to a layer: what left after a layer's attention is gone before the next one too.
    """

    def __init__(self, kept: Sequence[Tensor], merged: Mapping[int, Tensor], closed: Tensor) -> None:
        super().__init__()
        self._kept, self._merged, self._closed = kept, merged, closed

    @property
    def may_close_gaps(self) -> bool:
        return self._closed.numel() > 0

    def without_gap(self, gone: Tensor) -> Tensor:
        return gone[torch.isin(gone, self._closed.to(gone.device))]

    def observes_entry(self, layer: int) -> bool:
        return layer == 0 or layer in self._merged or self._kept[layer].numel() < self._kept[layer - 1].numel()

    def select_entry(self, layer: int, view: EntryView) -> Tensor | Merge | None:
        positions = torch.searchsorted(view.tokens, self._kept[layer].to(view.tokens.device))
        if layer in self._merged:
            return Merge(positions, self._merged[layer])
        return positions


@dataclass(frozen=True, eq=False)
class Uncached:
    """A forward without a cache, in `generate`.

    Attributes:
        rows: what it was given, embeddings `[batch, seq, d]` or token ids `[batch, seq]`. prompt_end: rows from this
            one on were generated after the prompt.
        runs: per example what repeats the prompt's selections; none while the prompt itself is read.
    """

    rows: Tensor
    prompt_end: int
    runs: Sequence[ReplayRun] = ()

    def continued_by(self, rows: Tensor) -> Uncached | None:
        """The forward of `rows`, where it is this one and the next row generated (beams may have moved within the
        batch); None for any other."""
        batch, seq = self.rows.shape[:2]
        if rows.shape[:2] != (batch, seq + 1):
            return None
        if not torch.equal(rows[:, : self.prompt_end], self.rows[:, : self.prompt_end]):
            return None
        before, now = self.rows[:, self.prompt_end :], rows[:, self.prompt_end : seq]
        if not all(any(torch.equal(mine, other) for other in before) for mine in now):
            return None
        return replace(self, rows=rows)
