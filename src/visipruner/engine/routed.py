"""Attention of one example's packed rows under a routing: groups of rows, each with the keys it may see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.contract.routing import Edge, Routing
from visipruner.engine.attention import Kernel
from visipruner.engine.masks import HostMask, kernel_mask

QKV = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class OtherKeys:
    """Keys that an example's rows see besides their own: what the cache held before this forward, and visual rows that
    do not run in the layer. Keys and values are `[kv_heads, n, head_dim]`, their logical `columns` and logit `bias`
    `[n]`. `visual`, `[n]` bool: which are visual tokens of the prompt that is being read (no older turn's are)."""

    keys: Tensor
    values: Tensor
    columns: Tensor
    bias: Tensor
    visual: Tensor

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """These, then the new ones, `[1, kv_heads, n, head_dim]`."""
        return torch.cat([self.keys[None], keys], -2), torch.cat([self.values[None], values], -2)

    def joined(self, other: OtherKeys) -> OtherKeys:
        """These, then the other ones."""
        return OtherKeys(
            torch.cat([self.keys, other.keys], -2),
            torch.cat([self.values, other.values], -2),
            *(torch.cat([getattr(self, name), getattr(other, name)]) for name in ("columns", "bias", "visual")),
        )


@dataclass(frozen=True, eq=False)
class PackedExample:
    """One example's rows in a layer.

    Attributes:
        example: its number in the batch.
        rows: `[n]` long, host rows. visual: `[n]` bool, which of them are visual.
        later: `[n]` bool, which of them came after the prompt, or None.
        sink_bias: `[n]` float, added to the logits of a sink, or None.
        others: keys that are not of these rows, or None.
    """

    example: int
    rows: Tensor
    visual: Tensor
    later: Tensor | None = None
    sink_bias: Tensor | None = None
    others: OtherKeys | None = None


@dataclass(frozen=True, eq=False)
class Edges:
    """One group of rows and the keys it attends to, ready for a kernel; the same in every layer of equal routing.

    Attributes:
        members: positions of the group's rows, or None for all. keys: positions of its keys, or None for all.
        mask: (mask, is_causal) for the kernel. blind: `[group]` bool, rows that see no key at all, or None.
        pairs: (query, key) pairs the kernel computes, per head.
    """

    edge: Edge
    members: Tensor | None
    keys: Tensor | None
    mask: tuple[Tensor | None, bool]
    blind: Tensor | None
    pairs: int


def plan(routing: Routing, host: HostMask, part: PackedExample, eager: bool, dtype: torch.dtype) -> list[Edges]:
    """The groups of rows in a layer of this routing; together they cover every row once, and none is empty."""
    columns, bias = part.rows + host.past, part.sink_bias
    visual = part.visual
    if part.others is not None:
        columns = torch.cat([part.others.columns, columns])
        visual = torch.cat([part.others.visual, visual])
        if bias is not None or bool(part.others.bias.any()):
            bias = torch.cat(
                [part.others.bias, torch.zeros_like(part.rows, dtype=torch.float32) if bias is None else bias]
            )
    groups = _groups(routing, part, bool(visual.any()))
    count = part.rows.numel()
    is_causal = host.tensor is None and part.others is None and bias is None and not eager
    if is_causal and len(groups) == 1 and count:  # no map of all rows times all rows, not even of bools
        return [Edges("attend", None, None, (None, count > 1), None, count * count)]
    edges = []
    for members, edge in groups:
        rows = part.rows if members is None else part.rows[members]
        if not rows.numel():
            continue
        keys = (~visual).nonzero().flatten() if edge == "cut" else None
        allowed = host.allowed(part.example, rows, columns if keys is None else columns[keys])
        if edge == "cut":  # keys that no row of the group can see are not worth a kernel's time
            seen = allowed.any(0)
            assert keys is not None
            keys, allowed = keys[seen], allowed[:, seen]
        sees = allowed.any(-1)
        part_bias = bias if bias is None or keys is None else bias[keys]
        added = host.added(part.example, rows, columns if keys is None else columns[keys])
        if added is not None:
            part_bias = added if part_bias is None else part_bias + added
        mask = kernel_mask(allowed, part_bias, eager, dtype)
        edges.append(Edges(edge, members, keys, mask, None if bool(sees.all()) else ~sees, allowed.numel()))
    return edges


def _groups(routing: Routing, part: PackedExample, any_visual: bool) -> list[tuple[Tensor | None, Edge]]:
    if routing.is_plain or routing.freezes_visual or not routing.visual_rows_attend or not any_visual:
        return [(None, "attend")]
    text = ~part.visual
    later = torch.zeros_like(text) if part.later is None or not routing.prompt_only else part.later
    return [
        ((text & ~later).nonzero().flatten(), routing.text_to_visual),
        (part.visual.nonzero().flatten(), routing.visual_to_visual),
        (later.nonzero().flatten(), "attend"),
    ]


def attend(
    kernel: Kernel, module: nn.Module, qkv: QKV, edges: list[Edges], visual: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    """Runs the kernel group by group; q, k, v are `[1, heads, n, head_dim]`; returns `[1, n, heads, head_dim]`.

    `visual`, `[n keys]` bool, says which keys belong to visual rows of this forward.
    """
    q, k, v = qkv
    if not edges:  # an example of padding alone
        return v.new_zeros(1, 0, q.shape[1], v.shape[-1])
    outputs = []
    for group in edges:
        part_q = q if group.members is None else q.index_select(2, group.members)
        part_k = k if group.keys is None else k.index_select(2, group.keys)
        part_v = v if group.keys is None else v.index_select(2, group.keys)
        part_v = edge_values(group.edge, part_v, visual)
        if part_k.shape[2] == 0:  # nothing to attend to: an image that opens the prompt
            outputs.append(v.new_zeros(1, part_q.shape[2], q.shape[1], v.shape[-1]))
            continue
        mask, is_causal = group.mask
        if mask is not None and mask.is_floating_point():
            mask = mask.to(part_q.dtype)  # autocast runs attention in another dtype than the layer
        extra = {} if mask is not None else {"is_causal": is_causal}
        output, _ = kernel(module, part_q, part_k, part_v, mask, **{**kwargs, **extra})
        outputs.append(output if group.blind is None else output.masked_fill(group.blind[None, :, None, None], 0))
    if len(edges) == 1 and edges[0].members is None:
        return outputs[0]
    order = torch.cat([group.members for group in edges if group.members is not None]).argsort()
    return torch.cat(outputs, dim=1).index_select(1, order)


def edge_values(edge: Edge, values: Tensor, visual: Tensor) -> Tensor:
    """Values `[..., n, head_dim]`, those of the rows `visual` (`[n]` bool) as the edge has them.

    Zeroing weights after the softmax is the same as zeroing the values they multiply, and moving their sum to a sink
    is the same as giving every visual row the sink's value: no attention map is needed for either.
    """
    if edge in ("attend", "cut"):
        return values
    where = visual.nonzero().flatten()
    if edge == "merge":
        sink = values.index_select(-2, where[:1])
        return values.index_copy(-2, where, sink.expand(*sink.shape[:-2], len(where), -1))
    return values.index_fill(-2, where[: len(where) // 2] if edge == "zero_first_half" else where, 0)
