"""What a pruner may look at before a layer runs: one example's rows on their way in, and what it may answer.

Before layer 0 these are the projected visual embeddings between the text's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from visipruner.contract.influence import last_row_attention
from visipruner.contract.layout import TokenLayout
from visipruner.contract.vision_view import VisionView
from visipruner.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class Merge:
    """Kept tokens that take over what others held.

    Attributes:
        kept: `[k]` long, ascending positions among the visual tokens present.
        states: `[k, d]`, what their hidden states become.
    """

    kept: Tensor
    states: Tensor


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a prompt.

    Attributes:
        positions: `[k]` long, where its tokens are among the visual tokens present. tokens: `[k]`, their numbers
            within the image, ascending; line by line where there is a grid.
        grid: `(rows, columns)` of the whole image's tokens, or None. size: how many tokens it had at first.
    """

    positions: Tensor
    tokens: Tensor
    grid: tuple[int, int] | None
    size: int

    @property
    def is_whole(self) -> bool:
        """Whether none of its tokens left."""
        return len(self.tokens) == self.size


@dataclass(frozen=True, eq=False)
class Projected:
    """Queries and keys of one layer: `query` `[heads, head_dim]` of the last row, `keys` `[kv_heads, k, head_dim]` of
    the rows asked for, the factor of their product in the logits, and the logits' softcap (None for none)."""

    query: Tensor
    keys: Tensor
    scaling: float
    softcap: float | None


@dataclass(frozen=True, eq=False)
class Recurrence:
    """What an example's rows do to the state S `[heads, key_dim, value_dim]` of a gated delta rule (arXiv 2412.06464),
    float32: row t makes decay_t S + k_t rate_t (v_t - k_t decay_t S) of it, k_t and v_t of `keys` and `values`.

    Attributes:
        queries, keys: `[heads, n, key_dim]`, of unit length. values: `[heads, n, value_dim]`.
        decay, rate: `[heads, n]`, from 0 to 1.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    decay: Tensor
    rate: Tensor

    def states(self) -> Iterator[Tensor]:
        """S before the first row, where it is zero, and after each row."""
        state = self.keys.new_zeros(len(self.keys), self.keys.shape[-1], self.values.shape[-1])
        yield state
        for key, value, decay, rate in zip(
            self.keys.unbind(1), self.values.unbind(1), self.decay.unbind(1), self.rate.unbind(1), strict=True
        ):
            state = state * decay[:, None, None]
            held = (key[:, None] @ state)[:, 0]
            state = state + key[..., None] * (rate[:, None] * (value - held))[:, None]
            yield state


# States of some rows [n, d], their places among the example's rows [n], with rotary embedding or without
# -> their queries [heads, n, head_dim], keys, the logits' factor and softcap.
Project = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor, float, float | None]]


class Tower(Protocol):
    """The vision tower as it encoded one example's images."""

    @property
    def depth(self) -> int:
        """Layers of the tower."""

    def views(self, layer: int) -> list[VisionView]:
        """The images in one of the layers that `Pruner.vision_layers` named."""


class EntryView:
    """One example before one layer.

    Attributes:
        states: `[n, d]` hidden states of the rows of this forward that are present.
        visual: `[n_v]` long, which of them are visual tokens. tokens: `[n_v]` long, the tokens' numbers in the prompt.
        layout: the prompt's images: `tokens_per_image` and `grids`.
        projected_rows, pairs: rows projected and (query, key) pairs computed for scores so far, the latter per head.
    """

    def __init__(
        self,
        states: Tensor,
        visual: Tensor,
        tokens: Tensor,
        layout: TokenLayout,
        project: Project,
        vision: Tower | None,
        rotary: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
        recurrence: Callable[[Tensor], Recurrence] | None = None,
    ) -> None:
        self.states, self.visual, self.tokens, self.layout = states, visual, tokens, layout
        self._project, self._vision, self._rotary, self._recurrence = project, vision, rotary, recurrence
        self.projected_rows = self.pairs = 0

    @cached_property
    def _places(self) -> Tensor:
        """`[n]` long: where the rows are among the example's, for the projections."""
        return torch.arange(len(self.states), device=self.states.device)

    @cached_property
    def embeddings(self) -> Tensor:
        """`[n_v, d]` hidden states of the visual tokens."""
        return self.states[self.visual]

    @cached_property
    def text(self) -> Tensor:
        """`[n_t]` long: the rows that are not visual."""
        is_visual = torch.zeros(len(self.states), dtype=torch.bool, device=self.states.device)
        is_visual[self.visual] = True  # the sort puts the others first, and their number is known
        return is_visual.sort(stable=True).indices[: len(self.states) - self.visual.numel()]

    @property
    def is_padded_before(self) -> bool:
        """Whether the example is padded on the left in the batch it came in."""
        return int(self.layout.on_host[0][0]) > 0

    def images(self) -> list[Image]:
        """The prompt's images, as far as they are present."""
        sizes = self.layout.tokens_per_image
        return [
            Image(positions, self.tokens[positions] - end + size, grid, size)
            for positions, size, end, grid in zip(
                self.positions_per_image(), sizes, accumulate(sizes), self.layout.grids, strict=True
            )
        ]

    def positions_per_image(self) -> list[Tensor]:
        """`[k]` long for each image: where its tokens are among the visual tokens present."""
        return self.layout.per_image(self.tokens)

    def vision(self, layer: int) -> list[VisionView]:
        """The images in a layer of the vision tower, one of those that `Pruner.vision_layers` named, in the order of
        `images()`; what a view tells is by the tokens' numbers within their image."""
        return [view.to(self.states.device) for view in self._tower().views(layer)]

    def salience(self, layer: int) -> Tensor:
        """`[n_v]` float32: `VisionView.salience` of every visual token present, in such a layer."""
        scores = torch.zeros(len(self.tokens), device=self.tokens.device)
        for image, seen in zip(self.images(), self.vision(layer), strict=True):
            scores[image.positions] = seen.salience[image.tokens].to(scores)
        return scores

    @property
    def vision_depth(self) -> int:
        """Layers of the vision tower; 0 where the method asked to see none."""
        return 0 if self._vision is None else self._vision.depth

    def _tower(self) -> Tower:
        if self._vision is None:
            raise LookupError("Pruner.vision_layers asked for no layer of the vision tower")
        return self._vision

    def project(self, rows: Tensor, rotary: bool = True) -> Projected:
        """The layer's own norm and projections, run ahead of it on some `rows` `[k]`, long and ascending, and the last.

        `rotary=False` leaves positions out: what the queries and keys are before RoPE. With it the example's first row
        has position 0, also where the model counts padding on the left.
        """
        last = self.states.shape[0] - 1
        has_last = rows.numel() > 0 and int(rows[-1]) == last
        return self._projected(rows, has_last, rotary)

    def rotary(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[axes, k, d]` of the rotary embeddings of `rows` `[k]` in the layer to come, as the model
        passes them: three axes where M-RoPE keeps time, height and width apart, else one. The example's first row has
        position 0, as in `project`. Raises UnsupportedModelError where the model does not show them."""
        if self._rotary is None:
            raise UnsupportedModelError(
                "Rotary embeddings are not shown here; this method needs the engine of transformers."
            )
        return self._rotary(self._places[rows])

    def recurrence(self) -> Recurrence:
        """What the rows will do to the state of the layer to come, a gated delta rule; the layer's own norm and
        projections, run ahead. Older turns are not in it. Raises UnsupportedModelError for another kind of layer."""
        if self._recurrence is None:
            raise UnsupportedModelError("States are not shown here; this method needs the engine of transformers.")
        self.projected_rows += len(self.states)
        return self._recurrence(self.states)

    def _projected(self, rows: Tensor, has_last: bool, rotary: bool) -> Projected:
        wanted = rows if has_last else torch.cat([rows, rows.new_full((1,), len(self.states) - 1)])
        queries, keys, scaling, softcap = self._project(self.states[wanted], self._places[wanted], rotary)
        self.projected_rows += wanted.numel()
        return Projected(queries[:, -1], keys[:, : rows.numel()], scaling, softcap)

    def attention(self, rotary: bool = True) -> Tensor:
        """`[heads, n_v]` float32: softmax of the last row over the visual tokens alone, in the layer to come."""
        return self._last_row_over(self.visual, has_last=False, rotary=rotary)  # the last row is never visual

    def attention_to_all(self) -> Tensor:
        """`[heads, n]` float32: softmax of the last row over all rows of this forward that are present, in the layer to
        come. Older turns are not among them; a sliding window is not looked at."""
        everyone = torch.arange(len(self.states), device=self.states.device)
        return self._last_row_over(everyone, has_last=True, rotary=True)

    def _last_row_over(self, rows: Tensor, has_last: bool, rotary: bool) -> Tensor:
        found = self._projected(rows, has_last, rotary)
        self.pairs += rows.numel()
        return last_row_attention(found.query, found.keys, found.scaling, softcap=found.softcap)

    def narrowed(self, answer: Tensor | Merge) -> EntryView:
        """The view after an answer was carried out: for a second method at the same layer."""
        kept = answer.kept if isinstance(answer, Merge) else answer
        stays = torch.ones(len(self.states), dtype=torch.bool, device=self.states.device)
        stays[self.visual] = False
        stays[self.visual[kept]] = True
        states = self.states
        if isinstance(answer, Merge):
            states = states.index_copy(0, self.visual[kept], answer.states.to(states))
        visual = (stays.cumsum(0) - 1)[self.visual[kept]]
        shown = (self._project, self._vision, self._rotary, self._recurrence)
        view = EntryView(states[stays], visual, self.tokens[kept], self.layout, *shown)
        view.__dict__["_places"] = self._places[stays]
        return view

    def add_work_of(self, narrowed: EntryView) -> None:
        """Counts what was computed for a look at `narrowed`, a part of this view, here."""
        self.pairs += narrowed.pairs
        self.projected_rows += narrowed.projected_rows
