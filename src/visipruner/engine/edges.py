"""Attention of packed rows under a routing: groups of rows, each with the keys it may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.layout import uploaded
from visipruner.contract.routing import Edge, Routing
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.masks import HostMask, MaskForm, added, is_open


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
        rows: `[n]` long, host rows. visual: `[n_v]` long, where visual rows are among them; text: gives the others'
            places, `[n_t]` long.
        prompt_end: rows from this one on came after the prompt.
        on_host: gives `rows`, and which of them are visual, as numbers.
        bias: `[n]` or `[n, n]` float, added to the logits of its keys, or None.
        others: keys that are not of these rows, or None.
    """

    example: int
    rows: Tensor
    visual: Tensor
    text: Callable[[], Tensor]
    prompt_end: int
    on_host: Callable[[], tuple[np.ndarray, np.ndarray]]
    bias: Tensor | None = None
    others: OtherKeys | None = None

    def columns(self, past: int) -> Tensor:
        """`[keys]` long: logical columns of all keys that the rows may see, `others` first."""
        own = self.rows + past if past else self.rows
        return own if self.others is None else torch.cat([self.others.columns, own])

    def all_keys(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of `others`, then the rows' own `[1, kv_heads, n, head_dim]`."""
        return (keys, values) if self.others is None else self.others.before(keys, values)

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
    mask: Any
    is_causal: bool
    blind: Tensor | None
    pairs: int
    lengths: Lengths | None = None
    takes_members: bool = False


class Groups:
    """The groups of packed rows in a layer; together they cover every row once, and none is empty.

    Attributes:
        pairs: (query, key) pairs of all of them, per head.
    """

    def __init__(self, edges: Sequence[Edges]) -> None:
        self._edges, self.pairs = edges, sum(group.pairs for group in edges)
        members = [group.members for group in edges if group.members is not None]
        self._order = torch.cat(members).argsort() if members else None

    def attend(
        self,
        kernel: Kernel,
        module: nn.Module,
        qkv: QKV,
        visual: Tensor,
        kwargs: Mapping[str, Any],
        counts: Sequence[int] = (),
    ) -> Tensor:
        """Runs the kernel group by group; q, k, v are `[1, heads, n, head_dim]`; returns `[1, n, heads, head_dim]`.

        `visual`, `[k]` long, says which keys belong to visual rows of this forward; `counts`, how many each example
        has, where there are several.
        """
        q, _, v = qkv
        if not self._edges:  # an example of padding alone
            return v.new_zeros(1, 0, q.shape[1], v.shape[-1])
        outputs = [_attend(group, kernel, module, qkv, (visual, counts), kwargs) for group in self._edges]
        return outputs[0] if self._order is None else torch.cat(outputs, dim=1).index_select(1, self._order)


def _attend(
    group: Edges,
    kernel: Kernel,
    module: nn.Module,
    qkv: QKV,
    visual: tuple[Tensor, Sequence[int]],
    kwargs: Mapping[str, Any],
) -> Tensor:
    q, k, v = qkv
    takes_all = group.members is None or group.takes_members
    part_q = q if takes_all or group.members is None else q.index_select(2, group.members)
    part_k = k if group.keys is None else k.index_select(2, group.keys)
    part_v = v if group.keys is None else v.index_select(2, group.keys)
    part_v = edge_values(group.edge, part_v, *visual)
    if part_k.shape[2] == 0:  # nothing to attend to: an image that opens the prompt
        return v.new_zeros(1, part_q.shape[2], q.shape[1], v.shape[-1])
    qkv = (part_q, part_k, part_v)
    output = run_kernel(kernel, module, qkv, group.mask, group.is_causal, kwargs, group.lengths)
    if group.takes_members and group.members is not None:
        output = output.index_select(1, group.members)
    return output if group.blind is None else output.masked_fill(group.blind[None, :, None, None], 0)


@dataclass(frozen=True, eq=False)
class Sight:
    """Rows of one example that see keys by the same edge, in the host's numbers.

    Attributes:
        members, keys: ascending places among the example's rows. allowed: `[members, keys]` bool, which may see which;
            None where the keys are the members themselves, under plain causality.
    """

    edge: Edge
    members: np.ndarray
    keys: np.ndarray
    allowed: np.ndarray | None


def plan(routing: Routing, host: HostMask, part: PackedExample, form: MaskForm, dtype: torch.dtype) -> Groups:
    """How an example's rows attend in a layer of this routing."""
    if part.others is not None or part.bias is not None or not host.is_causal[part.example]:
        return Groups(_masked(routing, host, part, form, dtype))
    return Groups([_group(sight, part.rows, form, dtype) for sight in sights(routing, part).values()])


def sights(routing: Routing, part: PackedExample) -> dict[str, Sight]:
    """What an example's rows see under plain causality, by what the rows are; of a routed layer one read, and only
    where tokens left before."""
    if not is_routed(routing, part):
        everyone = np.arange(part.rows.numel())
        return {"all": Sight("attend", everyone, everyone, None)} if len(everyone) else {}
    rows, is_visual = part.on_host()
    found = {}
    for name, (members, edge) in members_of(routing, part, rows, is_visual).items():
        keys = np.flatnonzero(~is_visual) if edge == "cut" else np.arange(len(rows))
        if edge == "cut":  # keys that no row of the group can see are not worth a kernel's time
            keys = keys[rows[keys] <= rows[members[-1]]]
        allowed = None if np.array_equal(keys, members) else rows[keys][None] <= rows[members][:, None]
        found[name] = Sight(edge, members, keys, allowed)
    return found


def is_routed(routing: Routing, part: PackedExample) -> bool:
    """Whether text and visual rows may see unlike keys."""
    is_plain = routing.is_plain or routing.freezes_visual or not routing.visual_rows_attend
    return not is_plain and (part.others is not None or part.visual.numel() > 0)


def members_of(
    routing: Routing, part: PackedExample, rows: np.ndarray, is_visual: np.ndarray
) -> dict[str, tuple[np.ndarray, Edge]]:
    """Places of the rows that see visual rows by the same edge, by what they are; none is empty."""
    is_later = (rows >= part.prompt_end) if routing.prompt_only else np.zeros_like(is_visual)
    groups: dict[str, tuple[np.ndarray, Edge]] = {
        "text": (np.flatnonzero(~is_visual & ~is_later), routing.text_to_visual),
        "visual": (np.flatnonzero(is_visual), routing.visual_to_visual),
        "later": (np.flatnonzero(is_later), "attend"),
    }
    return {name: (members, edge) for name, (members, edge) in groups.items() if len(members)}


def _group(sight: Sight, rows: Tensor, form: MaskForm, dtype: torch.dtype) -> Edges:
    """A group as cheap for a kernel as can be: fast paths run without a mask."""
    count, device, blind = len(sight.members), rows.device, None
    members = None if count == rows.numel() else uploaded(sight.members, device)
    if sight.allowed is None:
        mask = form.causal(count, dtype, device)
        return Edges(sight.edge, members, members, mask, mask is None and count > 1, None, count * count)
    keys = None if len(sight.keys) == rows.numel() else uploaded(sight.keys, device)
    mask = mask_of(sight.allowed[None], form, dtype, device)
    sees_none = np.logical_not(sight.allowed.any(-1, keepdims=True))[:, 0]
    if sees_none.any():
        blind = uploaded(sees_none, device)
    return Edges(sight.edge, members, keys, mask, False, blind, sight.allowed.size)


def mask_of(allowed: np.ndarray, form: MaskForm, dtype: torch.dtype, device: torch.device) -> Any:
    """A kernel's mask of `[batch, members, keys]` bool, None where it needs none."""
    if form is not MaskForm.ADDED and allowed.all():
        return None
    return form.of(uploaded(allowed, device), dtype)


def _masked(routing: Routing, host: HostMask, part: PackedExample, form: MaskForm, dtype: torch.dtype) -> list[Edges]:
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
        pairs = given.numel()
        if bias is not None:
            more = bias if bias.ndim == 1 or members is None else bias[members]
            more = more if keys is None else more[..., keys]
            given = (given if given.is_floating_point() else added(given, dtype)) + more.to(dtype)
            given = given.clamp(min=torch.finfo(dtype).min)
        mask = given[None, None] if given.is_floating_point() else form.of(given[None], dtype)
        found.append(Edges(edge, members, keys, mask, False, blind, pairs))
    return found


def _groups(routing: Routing, part: PackedExample) -> list[tuple[Tensor | None, Edge]]:
    text = part.text()
    later = text[:0]
    if routing.prompt_only:
        is_later = part.rows[text] >= part.prompt_end
        text, later = text[~is_later], text[is_later]
    return [(text, routing.text_to_visual), (part.visual, routing.visual_to_visual), (later, "attend")]


def _text_keys(part: PackedExample) -> Tensor:
    if part.others is None:
        return part.text()
    return torch.cat([(~part.others.visual).nonzero().flatten(), part.text() + part.others.columns.numel()])


def _bias(part: PackedExample) -> Tensor | None:
    if part.others is None:
        return part.bias
    return joined_bias((part.others.columns, part.others.bias), (part.rows, part.bias))


def run_kernel(
    kernel: Kernel,
    module: nn.Module,
    qkv: QKV,
    mask: Any,
    is_causal: bool,
    kwargs: Mapping[str, Any],
    lengths: Lengths | None = None,
) -> Tensor:
    """The host's own attention function on a mask, or lengths, of ours, `[batch, n, heads, head_dim]`."""
    if isinstance(mask, Tensor) and mask.is_floating_point():
        mask = mask.to(qkv[0].dtype)  # autocast runs attention in another dtype than the layer
    extra: dict[str, Any] = {} if mask is not None else {"is_causal": is_causal}
    if lengths is not None:
        extra |= {"cu_seq_lens_q": lengths.query_ends, "cu_seq_lens_k": lengths.key_ends}
        extra |= {"max_length_q": lengths.longest_query, "max_length_k": lengths.longest_key}
    output, _ = kernel(module, *qkv, mask, **{**kwargs, **extra})
    return output


def edge_values(edge: Edge, values: Tensor, visual: Tensor, counts: Sequence[int] = ()) -> Tensor:
    """Values `[..., n, head_dim]`, those of the rows `visual` (`[k]` long; `counts`, of several examples one after
    another) as the edge has them.

    Zeroing weights after the softmax is the same as zeroing the values they multiply, and moving their sum to a sink
    is the same as giving every visual row the sink's value: no attention map is needed for either.
    """
    if edge in ("attend", "cut") or not visual.numel():
        return values
    counts = counts or [visual.numel()]
    starts = np.cumsum([0, *counts[:-1]])
    if edge == "merge":
        sinks = visual.index_select(0, uploaded(np.repeat(starts, counts), visual.device))
        return values.index_copy(-2, visual, values.index_select(-2, sinks))
    if edge == "zero_first_half":
        halves = [start + np.arange(count // 2) for start, count in zip(starts, counts, strict=True)]
        visual = visual.index_select(0, uploaded(np.concatenate(halves), visual.device))
    return values.index_fill(-2, visual, 0)
