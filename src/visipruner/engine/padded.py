"""Examples of unlike length in one call of a kernel for each group of their rows: padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.layout import uploaded
from visipruner.contract.routing import Edge
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.edges import Sight, edge_values, mask_of, run_kernel
from visipruner.engine.masks import MaskForm
from visipruner.engine.rows import Rows


class PaddedRows:
    """How the packed rows of all examples attend, where every example is told by numbers what it sees.

    Padding repeats an example's last row. Plain causality hides it from every row before it, so that no mask is
    needed; where unlike keys are seen a mask closes it. What comes out of it is left out.
    """

    def __init__(self, groups: Sequence[_Group], order: Tensor | None, pairs: Sequence[int]) -> None:
        self._groups, self._order, self._pairs = groups, order, pairs

    @classmethod
    def of(
        cls,
        seen: Sequence[Mapping[str, Sight]],
        rows: Rows,
        visual: tuple[Tensor, Sequence[int]],
        form: MaskForm,
        dtype: torch.dtype,
    ) -> PaddedRows | None:
        """`seen`: what each example's rows see. `visual`: as `LiveRows.visual_places`.

        None where padding would take more than it saves: a few calls cost less than twice the attention.
        """
        by_name: dict[str, dict[int, Sight]] = {}
        for example, mine in enumerate(seen):
            for name, sight in mine.items():
                by_name.setdefault(name, {})[example] = sight
        needed = sum(len(sight.members) * len(sight.keys) for mine in seen for sight in mine.values())
        sizes = {name: _longest(alike) for name, alike in by_name.items()}
        if not by_name or sum(len(by_name[name]) * q * k for name, (q, k) in sizes.items()) > 2 * needed:
            return None
        pairs = [sum(sizes[name][0] * sizes[name][1] for name in mine) for mine in seen]
        groups, where, start = [], np.zeros(rows.total, dtype=np.int64), 0
        for name, alike in by_name.items():
            groups.append(_group(alike, rows, visual, form, dtype))
            for place, (example, sight) in enumerate(alike.items()):
                first = start + place * sizes[name][0]
                where[rows.spans[example].start + sight.members] = first + np.arange(len(sight.members))
            start += len(alike) * sizes[name][0]
        is_as_is = start == rows.total and bool((where == np.arange(start)).all())
        return cls(groups, None if is_as_is else uploaded(where, rows.flat.device), pairs)

    def pairs(self, example: int) -> int:
        """(query, key) pairs that the kernel computes for an example, per head; padding counts."""
        return self._pairs[example]

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """Of packed `[1, heads, n, head_dim]` queries, keys and values, `[1, n, heads, head_dim]`."""
        outputs = [group.attend(kernel, module, qkv, kwargs) for group in self._groups]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return together if self._order is None else together.index_select(1, self._order)


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows of all examples that have some of one kind.

    Attributes:
        batch: how many have. members, keys: `[batch * longest]` long, places among the packed rows; None for all.
        visual: `[k]` long, places of visual rows among the packed ones, and how many each example has.
        mask, is_causal, blind: as `edges.Edges` has them, of all members.
    """

    edge: Edge
    batch: int
    members: Tensor | None
    keys: Tensor | None
    visual: tuple[Tensor, Sequence[int]]
    mask: Any
    is_causal: bool
    blind: Tensor | None = None

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """`[1, batch * longest, heads, head_dim]`."""
        q, k, v = qkv
        v = edge_values(self.edge, v, *self.visual)
        wide = (_wide(q, self.members, self.batch), _wide(k, self.keys, self.batch), _wide(v, self.keys, self.batch))
        output = run_kernel(kernel, module, wide, self.mask, self.is_causal, kwargs)
        packed = output.reshape(1, -1, *output.shape[2:])
        return packed if self.blind is None else packed.masked_fill(self.blind[None, :, None, None], 0)


def _wide(packed: Tensor, places: Tensor | None, batch: int) -> Tensor:
    """`[batch, heads, longest, head_dim]` of packed `[1, heads, n, head_dim]`."""
    chosen = packed if places is None else packed.index_select(2, places)
    return chosen.view(packed.shape[1], batch, -1, packed.shape[3]).transpose(0, 1)


def _longest(alike: Mapping[int, Sight]) -> tuple[int, int]:
    """The most members, and keys, that an example has; one at least."""
    sights = alike.values()
    return max(len(sight.members) for sight in sights), max(1, *(len(sight.keys) for sight in sights))


def _group(
    alike: Mapping[int, Sight], rows: Rows, visual: tuple[Tensor, Sequence[int]], form: MaskForm, dtype: torch.dtype
) -> _Group:
    """One group of the examples that have it, by their numbers."""
    edge, device, (longest, most) = next(iter(alike.values())).edge, rows.flat.device, _longest(alike)
    starts = {example: rows.spans[example].start for example in alike}
    members = _placed({example: sight.members for example, sight in alike.items()}, starts, longest, rows)
    if all(sight.allowed is None for sight in alike.values()):
        mask = form.causal(longest, dtype, device)
        return _Group(edge, len(alike), members, members, visual, mask, mask is None and longest > 1)
    keys = _placed({example: sight.keys for example, sight in alike.items()}, starts, most, rows)
    allowed = np.zeros((len(alike), longest, most), dtype=bool)
    for wide, sight in zip(allowed, alike.values(), strict=True):
        count = len(sight.members)
        own = np.tri(count, dtype=bool) if sight.allowed is None else sight.allowed
        wide[:, : len(sight.keys)] = own[np.minimum(np.arange(longest), count - 1)]
    is_blind = ~allowed.any(-1).flatten()
    blind = uploaded(is_blind, device) if is_blind.any() else None
    return _Group(edge, len(alike), members, keys, visual, mask_of(allowed, form, dtype, device), False, blind)


def _placed(parts: Mapping[int, np.ndarray], starts: Mapping[int, int], longest: int, rows: Rows) -> Tensor | None:
    """Places among the packed rows, the last of each example repeated; None for all rows as they are."""
    lines = []
    for example, part in parts.items():
        known = starts[example] + (part if len(part) else np.zeros(1, dtype=np.int64))  # some row, which a mask closes
        lines.append(known[np.minimum(np.arange(longest), len(known) - 1)])
    flat = np.concatenate(lines)
    if len(flat) == rows.total and bool((flat == np.arange(len(flat))).all()):
        return None
    return uploaded(flat, rows.flat.device)
