"""Attention of one example's packed rows under a routing: groups of rows, each with the keys it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.routing import Edge, Routing
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.masks import HostMask, is_open


@dataclass(frozen=True, eq=False)
class OtherKeys:
    """Keys that an example's rows see besides their own: what the cache held before this forward, and visual rows that
    do not run in the layer. Keys and values are `[kv_heads, n, head_dim]`, their logical `columns` `[n]` and the `bias`
    of their logits `[n]`, or None. `visual`, `[n]` bool: which are visual tokens of the prompt that is being read (no
    older turn's are)."""

    keys: Tensor
    values: Tensor
    columns: Tensor
    bias: Tensor | None
    visual: Tensor

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """These, then the new ones, `[1, kv_heads, n, head_dim]`."""
        return torch.cat([self.keys[None], keys], -2), torch.cat([self.values[None], values], -2)

    def joined(self, other: OtherKeys) -> OtherKeys:
        """These, then the other ones."""
        return OtherKeys(
            torch.cat([self.keys, other.keys], -2),
            torch.cat([self.values, other.values], -2),
            torch.cat([self.columns, other.columns]),
            joined_bias((self.columns, self.bias), (other.columns, other.bias)),
            torch.cat([self.visual, other.visual]),
        )


def joined_bias(*parts: tuple[Tensor, Tensor | None]) -> Tensor | None:
    """Biases one after another, of keys `[n]` that each part has: zeros for a part without; None where none has."""
    if all(bias is None for _, bias in parts):
        return None
    return torch.cat(
        [keys.new_zeros(keys.shape, dtype=torch.float32) if bias is None else bias for keys, bias in parts]
    )


@dataclass(frozen=True, eq=False)
class PackedExample:
    """One example's rows in a layer.

    Attributes:
        example: its number in the batch.
        rows: `[n]` long, host rows. visual, text: `[n_v]` and `[n_t]` long, where visual and text rows are among them.
        prompt_end: rows from this one on came after the prompt.
        on_host: gives `rows`, and which of them are visual, as numbers.
        bias: `[n]` or `[n, n]` float, added to the logits of its keys, or None.
        others: keys that are not of these rows, or None.
    """

    example: int
    rows: Tensor
    visual: Tensor
    text: Tensor
    prompt_end: int
    on_host: Callable[[], tuple[np.ndarray, np.ndarray]]
    bias: Tensor | None = None
    others: OtherKeys | None = None

    def columns(self, past: int) -> Tensor:
        """`[keys]` long: logical columns of all keys that the rows may see, `others` first."""
        own = self.rows + past if past else self.rows
        return own if self.others is None else torch.cat([self.others.columns, own])

    def visual_keys(self) -> Tensor:
        """`[k]` long: which of all keys are visual tokens of this prompt."""
        if self.others is None:
            return self.visual
        return torch.cat([self.others.visual.nonzero().flatten(), self.visual + self.others.columns.numel()])


@dataclass(frozen=True, eq=False)
class Lengths:
    """Sequences of a packed call, as kernels of variable length are told: where each ends, `[sequences + 1]` int32, and
    the longest, of queries and of keys."""

    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class Edges:
    """One group of rows and the keys it attends to, ready for a kernel; the same in every layer of equal routing.

    Attributes:
        members: positions of the group's rows, or None for all. keys: positions of its keys, or None for all.
        mask: for the kernel, None where `is_causal` says it. blind: `[group]` bool, rows that see no key at all, or
            None where there are none.
        pairs: (query, key) pairs the kernel computes, per head.
        lengths: for kernels of variable length, which take no mask. takes_members: all rows run, and the group's are
            taken of what comes out.
    """

    edge: Edge
    members: Tensor | None
    keys: Tensor | None
    mask: Tensor | None
    is_causal: bool
    blind: Tensor | None
    pairs: int
    lengths: Lengths | None = None
    takes_members: bool = False


class Groups:
    """The groups of an example's rows in a layer; together they cover every row once, and none is empty.

    Attributes:
        pairs: (query, key) pairs of all of them, per head.
    """

    def __init__(self, edges: Sequence[Edges]) -> None:
        self._edges, self.pairs = edges, sum(group.pairs for group in edges)
        members = [group.members for group in edges if group.members is not None]
        self._order = torch.cat(members).argsort() if members else None

    def attend(self, kernel: Kernel, module: nn.Module, qkv: QKV, visual: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Runs the kernel group by group; q, k, v are `[1, heads, n, head_dim]`; returns `[1, n, heads, head_dim]`.

        `visual`, `[k]` long, says which keys belong to visual rows of this forward.
        """
        q, _, v = qkv
        if not self._edges:  # an example of padding alone
            return v.new_zeros(1, 0, q.shape[1], v.shape[-1])
        outputs = [_attend(group, kernel, module, qkv, visual, kwargs) for group in self._edges]
        return outputs[0] if self._order is None else torch.cat(outputs, dim=1).index_select(1, self._order)


def _attend(
    group: Edges, kernel: Kernel, module: nn.Module, qkv: QKV, visual: Tensor, kwargs: Mapping[str, Any]
) -> Tensor:
    q, k, v = qkv
    takes_all = group.members is None or group.takes_members
    part_q = q if takes_all or group.members is None else q.index_select(2, group.members)
    part_k = k if group.keys is None else k.index_select(2, group.keys)
    part_v = v if group.keys is None else v.index_select(2, group.keys)
    part_v = edge_values(group.edge, part_v, visual)
    if part_k.shape[2] == 0:  # nothing to attend to: an image that opens the prompt
        return v.new_zeros(1, part_q.shape[2], q.shape[1], v.shape[-1])
    qkv = (part_q, part_k, part_v)
    output = run_kernel(kernel, module, qkv, group.mask, group.is_causal, kwargs, group.lengths)
    if group.takes_members and group.members is not None:
        output = output.index_select(1, group.members)
    return output if group.blind is None else output.masked_fill(group.blind[None, :, None, None], 0)


def plan(routing: Routing, host: HostMask, part: PackedExample, eager: bool, dtype: torch.dtype) -> Groups:
    """How an example's rows attend in a layer of this routing."""
    return Groups(_edges(routing, host, part, eager, dtype))


def _edges(routing: Routing, host: HostMask, part: PackedExample, eager: bool, dtype: torch.dtype) -> list[Edges]:
    if part.others is not None or part.bias is not None or not host.is_causal[part.example]:
        return _masked(routing, host, part, eager, dtype)
    if is_routed(routing, part):
        return _routed(routing, part, eager, dtype)
    count = part.rows.numel()
    if not count:
        return []
    mask = causal_mask(count, dtype, part.rows.device) if eager else None
    return [Edges("attend", None, None, mask, count > 1 and not eager, None, count * count)]


def causal_mask(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[1, 1, count, count]`, what eager kernels add: rows see themselves and those before."""
    return torch.full((1, 1, count, count), torch.finfo(dtype).min, dtype=dtype, device=device).triu(1)


def is_routed(routing: Routing, part: PackedExample) -> bool:
    """Whether text and visual rows may see unlike keys."""
    is_plain = routing.is_plain or routing.freezes_visual or not routing.visual_rows_attend
    return not is_plain and (part.others is not None or part.visual.numel() > 0)


def _routed(routing: Routing, part: PackedExample, eager: bool, dtype: torch.dtype) -> list[Edges]:
    """Groups under plain causality, planned in numbers on the host: one read, and only where tokens left before."""
    (rows, is_visual), device = part.on_host(), part.rows.device
    found = []
    for members, edge in members_of(routing, part, rows, is_visual):
        keys = np.flatnonzero(~is_visual) if edge == "cut" else np.arange(len(rows))
        allowed = rows[keys][None] <= rows[members][:, None]
        if edge == "cut":  # keys that no row of the group can see are not worth a kernel's time
            seen = allowed.any(0)
            keys, allowed = keys[seen], allowed[:, seen]
        found.append(_group(edge, members, keys, allowed, eager, dtype, device))
    return found


def members_of(
    routing: Routing, part: PackedExample, rows: np.ndarray, is_visual: np.ndarray
) -> list[tuple[np.ndarray, Edge]]:
    """Places of the rows that see visual rows by the same edge; no group is empty."""
    is_later = (rows >= part.prompt_end) if routing.prompt_only else np.zeros_like(is_visual)
    groups: list[tuple[np.ndarray, Edge]] = [
        (np.flatnonzero(~is_visual & ~is_later), routing.text_to_visual),
        (np.flatnonzero(is_visual), routing.visual_to_visual),
        (np.flatnonzero(is_later), "attend"),
    ]
    return [(members, edge) for members, edge in groups if len(members)]


def _group(
    edge: Edge,
    members: np.ndarray,
    keys: np.ndarray,
    allowed: np.ndarray,
    eager: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Edges:
    """A group as cheap for a kernel as can be: fast paths run without a mask."""
    is_square = len(keys) == len(members) > 1 and bool((keys == members).all())
    mask, blind = None, None
    if eager or not (is_square or allowed.all()):
        given = torch.from_numpy(allowed).to(device)
        mask = (_added(given, dtype) if eager else given)[None, None]
    if not allowed.any(-1).all():
        blind = torch.from_numpy(~allowed.any(-1)).to(device)
    rows, columns = (torch.from_numpy(part).to(device) for part in (members, keys))
    return Edges(edge, rows, columns, mask, is_square and not eager, blind, allowed.size)


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the logits: 0, or the lowest number where nothing is `allowed` (bool)."""
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero, torch.finfo(dtype).min)


def _masked(routing: Routing, host: HostMask, part: PackedExample, eager: bool, dtype: torch.dtype) -> list[Edges]:
    """Groups that are told row by row what to see: the caller's own mask, older keys, biases. Reads nothing."""
    columns = part.columns(host.past)
    groups: list[tuple[Tensor | None, Edge]] = [(None, "attend")]
    if is_routed(routing, part):
        groups = _groups(routing, part)
    bias = _bias(part)
    found = []
    for members, edge in groups:
        rows = part.rows if members is None else part.rows[members]
        if not rows.numel():
            continue
        keys = _text_keys(part) if edge == "cut" else None
        given = host.values(part.example, rows, columns if keys is None else columns[keys])
        blind = ~is_open(given).any(-1)
        if bias is not None:
            added = bias if bias.ndim == 1 or members is None else bias[members]
            added = added if keys is None else added[..., keys]
            given = (given if given.is_floating_point() else _added(given, dtype)) + added.to(dtype)
            given = given.clamp(min=torch.finfo(dtype).min)
        elif eager and not given.is_floating_point():
            given = _added(given, dtype)
        found.append(Edges(edge, members, keys, given[None, None], False, blind, given.numel()))
    return found


def _groups(routing: Routing, part: PackedExample) -> list[tuple[Tensor | None, Edge]]:
    text, later = part.text, part.text[:0]
    if routing.prompt_only:
        is_later = part.rows[part.text] >= part.prompt_end
        text, later = part.text[~is_later], part.text[is_later]
    return [(text, routing.text_to_visual), (part.visual, routing.visual_to_visual), (later, "attend")]


def _text_keys(part: PackedExample) -> Tensor:
    if part.others is None:
        return part.text
    return torch.cat([(~part.others.visual).nonzero().flatten(), part.text + part.others.columns.numel()])


def _bias(part: PackedExample) -> Tensor | None:
    if part.others is None:
        return part.bias
    return joined_bias((part.others.columns, part.others.bias), (part.rows, part.bias))


def run_kernel(
    kernel: Kernel,
    module: nn.Module,
    qkv: QKV,
    mask: Tensor | None,
    is_causal: bool,
    kwargs: Mapping[str, Any],
    lengths: Lengths | None = None,
) -> Tensor:
    """The host's own attention function on a mask, or lengths, of ours, `[batch, n, heads, head_dim]`."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(qkv[0].dtype)  # autocast runs attention in another dtype than the layer
    extra: dict[str, Any] = {} if mask is not None else {"is_causal": is_causal}
    if lengths is not None:
        extra |= {"cu_seq_lens_q": lengths.query_ends, "cu_seq_lens_k": lengths.key_ends}
        extra |= {"max_length_q": lengths.longest_query, "max_length_k": lengths.longest_key}
    output, _ = kernel(module, *qkv, mask, **{**kwargs, **extra})
    return output


def edge_values(edge: Edge, values: Tensor, visual: Tensor) -> Tensor:
    """Values `[..., n, head_dim]`, those of the rows `visual` (`[k]` long) as the edge has them.

    Zeroing weights after the softmax is the same as zeroing the values they multiply, and moving their sum to a sink
    is the same as giving every visual row the sink's value: no attention map is needed for either.
    """
    if edge in ("attend", "cut") or not visual.numel():
        return values
    if edge == "merge":
        sink = values.index_select(-2, visual[:1])
        return values.index_copy(-2, visual, sink.expand(*sink.shape[:-2], len(visual), -1))
    return values.index_fill(-2, visual[: len(visual) // 2] if edge == "zero_first_half" else visual, 0)
