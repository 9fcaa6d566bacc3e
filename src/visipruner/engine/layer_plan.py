"""One layer's attention over packed rows: planned before the layer runs, and run as often as the layer is.

Gradient checkpointing repeats a layer long after the session went on, so a plan holds all that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.contract.pruner import PromptRun
from visipruner.contract.routing import Routing
from visipruner.engine import flash
from visipruner.engine.attention import QKV
from visipruner.engine.edges import Groups, OtherKeys, PackedExample, plan, sights
from visipruner.engine.host import Host
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.masks import HostMask, MaskForm
from visipruner.engine.padded import PaddedRows
from visipruner.engine.rows import Rows
from visipruner.engine.soft import edge_bias, is_biased
from visipruner.errors import UnsupportedModelError

# The keyword argument with which a plan passes through a layer to its attention while gradients are recorded.
PLAN = "visipruner_plan"

# (keyword arguments, queries, keys and values of one example, whether it is a repetition)
Look = Callable[[Any, QKV, bool], None]


@dataclass(eq=False)
class LayerPlan:
    """How the packed rows of all examples attend in one layer.

    Attributes:
        rows: where each example lies in the packed rows. parts: the examples.
        groups: per example the groups of its rows. together: all examples in one call for each group, where that is
            possible; `groups` is empty then.
        looks: by example what asks the pruner. mask: what the host's said.
    """

    host: Host
    rows: Rows
    parts: Sequence[PackedExample]
    groups: Sequence[Groups]
    together: PaddedRows | flash.PackedRows | None
    looks: dict[int, Look]
    mask: HostMask
    has_run: bool = False

    def pairs(self, example: int) -> int:
        """(query, key) pairs that the kernel computes for an example, per head; padding counts."""
        return self.groups[example].pairs if self.together is None else self.together.pairs(example)

    def attend(self, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """`[1, n, heads, head_dim]` of all examples' rows; then the pruner looks at those it asked for."""
        queries, keys = (part.shape[-2] for part in qkv[:2])
        if not queries == keys == self.rows.total:
            raise UnsupportedModelError(
                f"{type(module).__name__} attends from {queries} rows to {keys} keys where {self.rows.total} rows run, "
                "so it cannot be pruned (layers may share keys); choose another model."
            )
        again, self.has_run = self.has_run, True
        if self.host.form is MaskForm.LENGTHS:
            flash.check_window(kwargs, self.mask)
        if self.together is not None:
            output = self.together.attend(self.host.kernel, module, qkv, kwargs)
            for example in self.looks:
                q, k, v = (part[:, :, self.rows.spans[example]] for part in qkv)
                self._look(example, kwargs, q, *self.parts[example].all_keys(k, v), again)
            return output
        outputs = []
        for part, groups, span in zip(self.parts, self.groups, self.rows.spans, strict=True):
            q, k, v = qkv if len(self.parts) == 1 else (tensor[:, :, span] for tensor in qkv)
            k, v = part.all_keys(k, v)
            outputs.append(groups.attend(self.host.kernel, module, (q, k, v), part.visual_keys(), kwargs))
            self._look(part.example, kwargs, q, k, v, again)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _look(self, example: int, kwargs: Any, q: Tensor, k: Tensor, v: Tensor, again: bool) -> None:
        look = self.looks.get(example)
        if look is not None:
            look(kwargs, (q[0], k[0], v[0]), again)


class Planner:
    """Plans the layers of one forward. `prompt_end`: rows from this one on came after the prompt."""

    def __init__(self, host: Host, live: LiveRows, runs: Sequence[PromptRun], prompt_end: int) -> None:
        self._host, self._live, self._runs, self._prompt_end = host, live, runs, prompt_end

    def plan(
        self,
        layer: int,
        routing: Routing,
        mask: HostMask,
        others: Sequence[OtherKeys | None] | None,
        dtype: torch.dtype,
    ) -> LayerPlan:
        """How the packed rows attend in a layer; what does not change from layer to layer is computed once."""
        is_soft = is_biased(layer, self._runs)
        if is_soft and self._host.form is MaskForm.BLOCKS:
            raise UnsupportedModelError(
                "A model that learns to prune needs gradients of attention's mask, which flex attention has none of; "
                "load it with attn_implementation='sdpa' or 'eager'."
            )
        make = partial(self._groups, layer, routing, mask, others, is_soft, dtype)
        if others is not None or is_soft:
            parts, groups, together = make()
        else:
            parts, groups, together = self._live.once(("groups", routing, id(mask), dtype), make)
        return LayerPlan(self._host, self._live.attending, parts, groups, together, {}, mask)

    def _groups(
        self,
        layer: int,
        routing: Routing,
        mask: HostMask,
        others: Sequence[OtherKeys | None] | None,
        is_soft: bool,
        dtype: torch.dtype,
    ) -> tuple[list[PackedExample], list[Groups], PaddedRows | flash.PackedRows | None]:
        besides = others or [None] * len(self._runs)
        parts = [self._example(layer, example, routing, beside, is_soft) for example, beside in enumerate(besides)]
        rows, form = self._live.attending, self._host.form
        if form is MaskForm.LENGTHS:
            return parts, [], flash.PackedRows(routing, parts, rows)
        is_causal = all(mask.is_causal) and all(part.others is None and part.bias is None for part in parts)
        if is_causal and len(parts) > 1:
            seen = [sights(routing, part) for part in parts]
            together = PaddedRows.of(seen, rows, self._live.visual_places(), form, dtype)
            if together is not None:
                return parts, [], together
        return parts, [plan(routing, mask, part, form, dtype) for part in parts], None

    def _example(
        self, layer: int, example: int, routing: Routing, beside: OtherKeys | None, is_soft: bool
    ) -> PackedExample:
        live = self._live
        rows, visual = live.attending.index[example], live.visual_attending(example)
        bias = live.sink_bias(example) if routing.sink else None
        if is_soft and beside is None:
            bias = edge_bias(layer, self._runs[example], rows, visual)
        text, on_host = partial(live.text_attending, example), partial(live.on_host, example)
        return PackedExample(example, rows, visual, text, self._prompt_end, on_host, bias, beside)
