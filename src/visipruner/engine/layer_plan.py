"""One layer's attention over packed rows: planned before the layer runs, and run as often as the layer is.

Gradient checkpointing repeats a layer long after the session went on, so a plan holds all that it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.edges import Groups, PackedExample, causal_mask, run_kernel
from visipruner.engine.rows import Rows

# The keyword argument with which a plan passes through a layer to its attention while gradients are recorded.
PLAN = "visipruner_plan"

# (keyword arguments, queries, keys and values of one example, whether it is a repetition)
Look = Callable[[Any, QKV, bool], None]


@dataclass(eq=False)
class LayerPlan:
    """How the packed rows of all examples attend in one layer.

    Attributes:
        rows: where each example lies in the packed rows. parts: the examples.
        groups: per example the groups of its rows. padded: all examples in one call, where their rows are plain.
        looks: by example what asks the pruner.
    """

    kernel: Kernel
    rows: Rows
    parts: Sequence[PackedExample]
    groups: Sequence[Groups]
    padded: PaddedRows | None
    looks: dict[int, Look]
    has_run: bool = False

    def pairs(self, example: int) -> int:
        """(query, key) pairs that the kernel computes for an example, per head; padding counts."""
        return self.groups[example].pairs if self.padded is None else self.padded.longest**2

    def attend(self, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """`[1, n, heads, head_dim]` of all examples' rows; then the pruner looks at those it asked for."""
        again, self.has_run = self.has_run, True
        if self.padded is not None:
            output = self.padded.attend(self.kernel, module, qkv, kwargs)
            for example in self.looks:
                span = self.rows.spans[example]
                q, k, v = (part[:, :, span] for part in qkv)
                self._look(example, kwargs, q, k, v, again)
            return output
        outputs = []
        for part, groups, span in zip(self.parts, self.groups, self.rows.spans, strict=True):
            q, k, v = qkv if len(self.parts) == 1 else (tensor[:, :, span] for tensor in qkv)
            if part.others is not None:
                k, v = part.others.before(k, v)
            outputs.append(groups.attend(self.kernel, module, (q, k, v), part.visual_keys(), kwargs))
            self._look(part.example, kwargs, q, k, v, again)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _look(self, example: int, kwargs: Any, q: Tensor, k: Tensor, v: Tensor, again: bool) -> None:
        look = self.looks.get(example)
        if look is not None:
            look(kwargs, (q[0], k[0], v[0]), again)


class PaddedRows:
    """Examples of unlike length in one call of the kernel: padded on the right, where plain causality hides the padding
    from every row before it, so that no mask is needed.

    Attributes:
        longest: rows of the longest example.
    """

    def __init__(self, rows: Rows, mask: Tensor | None) -> None:
        self._batch, self.longest, self._mask = len(rows.index), max(rows.lengths), mask
        self._in: Tensor | None = None
        if rows.total < self._batch * self.longest:
            starts = np.array([[span.start] for span in rows.spans])
            stops = np.array([[span.stop] for span in rows.spans])
            places = starts + np.arange(self.longest)
            device = rows.flat.device
            self._in = torch.from_numpy(np.minimum(places, stops - 1).flatten()).to(device)
            self._out = torch.from_numpy(np.flatnonzero(places < stops)).to(device)

    @classmethod
    def of(cls, rows: Rows, eager: bool, dtype: torch.dtype) -> PaddedRows | None:
        """None where padding would take more than it saves: a few calls cost less than twice the attention."""
        longest = max(rows.lengths)
        if min(rows.lengths) == 0 or len(rows.index) * longest**2 > 2 * sum(length**2 for length in rows.lengths):
            return None
        return cls(rows, causal_mask(longest, dtype, rows.flat.device) if eager else None)

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """Of packed `[1, heads, n, head_dim]` queries, keys and values, `[1, n, heads, head_dim]`."""
        q, k, v = map(self._padded, qkv)
        output = run_kernel(kernel, module, (q, k, v), self._mask, self._mask is None and self.longest > 1, kwargs)
        flat = output.flatten(0, 1)
        return (flat if self._in is None else flat.index_select(0, self._out)).unsqueeze(0)

    def _padded(self, packed: Tensor) -> Tensor:
        """`[batch, heads, longest, head_dim]`."""
        wide = packed[0] if self._in is None else packed[0].index_select(1, self._in)
        return wide.reshape(wide.shape[0], self._batch, self.longest, -1).transpose(0, 1)
