"""One layer's attention over packed rows, apart from the session that planned it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.engine.attention import Kernel
from visipruner.engine.routed import QKV, Edges, OtherKeys, attend

# The keyword argument with which a frame passes through a layer to its attention.
FRAME = "visipruner_frame"

# (keyword arguments, queries, keys and values of one example, whether it is a repetition)
Look = Callable[[Any, QKV, bool], None]


class Frame:
    """What a layer's attention needs to run, and to run again when gradient checkpointing repeats the layer, long
    after the session went on.

    Args:
        spans: where each example lies in the packed rows. visual: per example `[n keys]` bool.
        edges: per example the groups of rows and their keys. looks: per example what asks the pruner, or None.
        others: per example keys that are not of its rows, which come before theirs, or None.
    """

    def __init__(
        self,
        kernel: Kernel,
        spans: Sequence[slice],
        visual: Sequence[Tensor],
        edges: Sequence[list[Edges]],
        looks: Sequence[Look | None],
        others: Sequence[OtherKeys | None],
    ) -> None:
        self._kernel, self._spans, self._visual, self._edges, self._looks = kernel, spans, visual, edges, looks
        self._others = others
        self._ran = False

    def attend(self, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """`[1, n, heads, head_dim]` of all examples' rows. A repetition records the same operations as the first."""
        again, self._ran = self._ran, True
        outputs = []
        for span, visual, edges, look, other in zip(
            self._spans, self._visual, self._edges, self._looks, self._others, strict=True
        ):
            q, k, v = (part[:, :, span] for part in qkv)
            if other is not None:
                k, v = other.before(k, v)
            outputs.append(attend(self._kernel, module, (q, k, v), edges, visual, kwargs))
            if look is not None:
                look(kwargs, (q[0], k[0], v[0]), again)
        return joined(outputs)


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """The examples' outputs one after another, `[1, sum of lengths, heads, head_dim]`."""
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=1)
