"""Runs altered variants of a reading through the model's own layers, only the rows and layers that can differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.analysis.reading import LayerStates, Reading
from visipruner.analysis.variants import EdgeEdit, Variant
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.calls import seq_dim
from visipruner.engine.host import Host


class Rerun:
    """One sweep: several variants of one reading, layer by layer in one growing batch.

    A variant joins the batch at its first layer, with the states its parent (or the dense reading) has there, so no
    layer below the first change is computed again. Rows outside `rows` and `context` do not exist for it; those of
    `context` are seen, with the dense reading's keys and values, and not run.

    Args:
        rows: per variant `[r]` long, ascending, rows to run; all of one length.
        context: `[c]` long, rows that are seen only.
    """

    def __init__(
        self, host: Host, reading: Reading, variants: Sequence[Variant], rows: Sequence[Tensor], context: Tensor
    ) -> None:
        self._kernel: Kernel = host.kernel
        self._host, self._reading, self._variants = host, reading, variants
        self._rows, self._context = rows, context
        self._is_shared = all(part is rows[0] for part in rows)
        self._columns = [torch.cat([context, part]) for part in rows]
        self._alive: list[int] = []
        self._allowed: dict[tuple[int, int], Tensor] = {}

    def run(self) -> Tensor:
        """`[variants, r, d]`, states leaving the last layer."""
        layers = len(self._reading.layers)
        hidden: Tensor | None = None
        order = sorted(range(len(self._variants)), key=lambda number: self._variants[number].start)
        for layer in range(self._variants[order[0]].start if order else layers, layers):
            hidden = self._join(layer, hidden)
            states = self._reading.layers[layer]
            output = self._host.layers[layer](hidden, **self._arguments(states))
            output = output[0] if isinstance(output, tuple) else output
            hidden = self._rest(layer, hidden, output)
            if states.added is not None:  # by the host between layers: rows that rested get it, too
                hidden = hidden + torch.stack([states.added[self._rows[number]] for number in self._alive])
        hidden = self._join(layers, hidden)
        place = {number: position for position, number in enumerate(self._alive)}
        return hidden[[place[number] for number in range(len(self._variants))]]

    def _join(self, layer: int, hidden: Tensor | None) -> Tensor:
        """The batch entering a layer, with the variants that begin there."""
        parts = [] if hidden is None else [hidden]
        place = {number: position for position, number in enumerate(self._alive)}
        dense = self._reading.final if layer == len(self._reading.layers) else self._reading.layers[layer].hidden
        for number, variant in enumerate(self._variants):
            if variant.start != layer:
                continue
            if variant.parent is None:
                parts.append(dense[self._rows[number]][None])
            else:
                assert hidden is not None, "a parent starts below its children"
                parts.append(hidden[place[variant.parent]][None])
            self._alive.append(number)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _rest(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        for position, number in enumerate(self._alive):
            resting = self._variants[number].resting.get(layer)
            if resting is not None:
                flags = resting[self._rows[number]]
                after[position, flags] = before[position, flags]
        return after

    def _arguments(self, states: LayerStates) -> dict[str, Any]:
        per_row = {name: self._gather(given, seq_dim(name) or -2) for name, given in states.per_row.items()}
        return {**states.arguments, **per_row, "attention_mask": None}

    def _gather(self, given: Any, dim: int) -> Any:
        """A per-row argument for the rows that run: one for all variants where they share rows, else one each."""
        if not isinstance(given, Tensor):
            return tuple(self._gather(part, dim) for part in given)
        if self._is_shared:
            return given.index_select(dim, self._rows[0].to(given.device))
        parts = [given.index_select(dim, self._rows[number].to(given.device)) for number in self._alive]
        return torch.cat(parts, dim=dim - 1)  # the batch dimension lies before the sequence dimension

    # ---- attention ------------------------------------------------------------------------------------------------

    def attend(self, layer: int, module: nn.Module, qkv: QKV, kwargs: Any) -> tuple[Tensor, None]:
        """The layer's attention for every variant in play; q is `[b, heads, r, head_dim]`."""
        q, k, v = qkv
        states = self._reading.layers[layer]
        if self._context.numel():
            k = torch.cat([states.keys[:, self._context].expand(len(k), -1, -1, -1), k], dim=-2)
            v = torch.cat([states.values[:, self._context].expand(len(v), -1, -1, -1), v], dim=-2)
        edits = [self._variants[number].edits.get(layer, ()) for number in self._alive]
        allowed = torch.stack(
            [self._open(layer, number, some) for number, some in zip(self._alive, edits, strict=True)]
        )
        output = self._run_kernel(module, (q, k, v), allowed, kwargs)
        for position, (number, some) in enumerate(zip(self._alive, edits, strict=True)):
            for edit in some:
                if edit.how != "cut":
                    one = slice(position, position + 1)
                    self._change_values(
                        output[one], number, edit, module, (q[one], k[one], v[one]), allowed[one], kwargs
                    )
        return output, None

    def _open(self, layer: int, number: int, edits: tuple[EdgeEdit, ...]) -> Tensor:
        """`[r, columns]` bool: a variant's edges before the softmax."""
        rows, columns = self._rows[number], self._columns[number]
        base = self._reading.layers[layer].allowed
        key = (id(base), 0 if self._is_shared else number)
        if key not in self._allowed:
            self._allowed[key] = base[rows][:, columns]
        allowed = self._allowed[key]
        for edit in edits:
            if edit.how == "cut":
                allowed = allowed & ~(edit.src[rows, None] & edit.dst[columns])
        return allowed

    def _change_values(
        self, output: Tensor, number: int, edit: EdgeEdit, module: nn.Module, qkv: QKV, allowed: Tensor, kwargs: Any
    ) -> None:
        """Rows `src` again, with the values behind the edges zeroed or replaced by the sink's.

        Scaling a weight after the softmax is the same as scaling the value it multiplies; no map is needed.
        """
        q, k, v = qkv
        columns = self._columns[number]
        where = edit.dst[columns].nonzero().flatten().to(v.device)
        sources = edit.src[self._rows[number]].nonzero().flatten().to(v.device)
        if not where.numel() or not sources.numel():
            return
        if edit.onto is not None and edit.how == "merge":
            sink = columns.eq(edit.onto).nonzero().flatten().to(v.device)
            v = v.index_copy(-2, where, v.index_select(-2, sink).expand(-1, -1, len(where), -1))
        else:
            v = v.index_fill(-2, where, 0)
        part = self._run_kernel(module, (q[:, :, sources], k, v), allowed[:, sources.cpu()], kwargs)
        output.index_copy_(1, sources, part)

    def _run_kernel(self, module: nn.Module, qkv: QKV, allowed: Tensor, kwargs: Any) -> Tensor:
        q = qkv[0]
        allowed = allowed.to(q.device)
        blind = ~allowed.any(-1)
        mask = allowed[:, None]
        if self._host.is_eager:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        output, _ = self._kernel(module, *qkv, mask, **{**kwargs, "is_causal": False})
        return output.masked_fill(blind[:, :, None, None], 0)
