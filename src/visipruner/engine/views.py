"""What a pruner is shown of a layer's attention once it ran."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from visipruner.contract.layer_view import LayerView
from visipruner.engine.attention import QKV
from visipruner.engine.calls import scaling_of
from visipruner.engine.edges import PackedExample
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.masks import HostMask


def packed_view(live: LiveRows, part: PackedExample, mask: HostMask, qkv: QKV, kwargs: Mapping[str, Any]) -> LayerView:
    """One example of a layer with packed rows; its queries, keys and values `[heads, n, head_dim]`."""
    columns = part.columns(mask.past)
    own = torch.arange(part.rows.numel(), device=part.rows.device)
    return _view(
        live,
        part.example,
        qkv,
        (own, own + (columns.numel() - own.numel()), part.visual_keys()),
        lambda which: mask.seen(part.example, part.rows[which], columns),
        kwargs,
        last=own.numel() - 1,
        last_sees_all=part.others is None and mask.is_causal[part.example],
        visual_span=live.visual_span(part.example) if part.others is None else None,
    )


def whole_view(live: LiveRows, example: int, mask: HostMask, qkv: QKV, kwargs: Mapping[str, Any]) -> LayerView:
    """One example of a layer with the host's own rows, padding and older keys included."""
    layout, seq = live.layouts[example], mask.seq
    older = qkv[1].shape[-2] - seq
    real, held = layout.on_host
    visual, span = live.visual_of(example), live.visual_span(example)
    if span is not None:
        span = slice(int(held[0]) + older, int(held[0]) + older + visual.numel())

    def seen(which: Tensor) -> Tensor:
        columns = torch.arange(older + seq, device=layout.real.device) + (mask.past - older)
        return mask.seen(example, layout.real[which], columns)

    return _view(
        live,
        example,
        qkv,
        (layout.real, layout.real + older if older else layout.real, visual + older if older else visual),
        seen,
        kwargs,
        last=int(real[-1]),
        last_sees_all=mask.tensor is None and int(real[-1]) == seq - 1,
        visual_span=span,
    )


def _view(
    live: LiveRows,
    example: int,
    qkv: QKV,
    where: tuple[Tensor, Tensor, Tensor],
    seen: Callable[[Tensor], Tensor],
    kwargs: Mapping[str, Any],
    **known: Any,
) -> LayerView:
    """`where`: which queries are rows of the example, where those are among the keys, and which keys are visual."""
    tokens, layout = live.tokens[example], live.layouts[example]
    return LayerView(*qkv, *where, tokens, layout, scaling_of(kwargs, qkv[0]), seen, kwargs.get("softcap"), **known)
