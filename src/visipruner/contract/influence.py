"""Influence of visual tokens on the last prompt row: the paper's score. Pure maths on one query row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Influence:
    """How much the last row's attention output depends on each visual token.

    With A the last row's softmax weights, `c_j` the concatenation over heads of `A[h, j] v_{h, j}` and `o` the sum of
    all `c_j` (the attention output before the output projection), per visual token j:

    Attributes:
        cosine: `[n_v]` float32, cos(o, o - c_j); 1 where the token changes nothing.
        norm: `[n_v]` float32, ||c_j||_2, all heads together.
        output_norm: ||o||_2.
    """

    cosine: Tensor
    norm: Tensor
    output_norm: float


def last_row_attention(
    query: Tensor, keys: Tensor, scaling: float, allowed: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Softmax weights of one query row, in float32.

    Args:
        query: `[heads, head_dim]` after RoPE. keys: `[kv_heads, n, head_dim]` after RoPE.
        scaling: factor of the logits. allowed: `[n]`, keys the row may attend to, as `masked` takes them; None for all.
        softcap: bound c of the logits, c tanh(logit / c); None for none.

    Returns:
        `[heads, n]`.
    """
    groups = query.float().view(keys.shape[0], -1, query.shape[-1])
    logits = softcapped(groups @ keys.float().transpose(1, 2) * scaling, softcap)
    return masked(logits, allowed).softmax(-1).flatten(0, 1)


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits with those of keys that may not be seen at -inf. `allowed`: bool, or float to be added; None for all."""
    if allowed is None:
        return logits
    return logits.masked_fill(~allowed, float("-inf")) if allowed.dtype == torch.bool else logits + allowed


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits bounded smoothly to `(-softcap, softcap)`; as they are for None."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def influence(attention: Tensor, values: Tensor, visual: Tensor) -> Influence:
    """`Influence` of the tokens `visual` from one row of attention (paper, section 4.2; here in O(n d)).

    Nothing of size [n_v, d] per head group is formed: c_j . o and ||c_j||^2 follow from per-head products,
    `c_j . o = sum_h a_hj (v_hj . o_h)` and `||c_j||^2 = sum_h a_hj^2 ||v_hj||^2`.

    Args:
        attention: `[heads, n]` float32 weights of the row. values: `[kv_heads, n, head_dim]`.
        visual: `[n_v]` long, columns of the visual tokens, ascending.
    """
    v = values.float()
    a = attention.view(v.shape[0], -1, attention.shape[-1])  # [kv_heads, group, n]
    o = a @ v  # [kv_heads, group, head_dim]
    a_vis, v_vis = _pick(a, visual, -1), _pick(v, visual, -2)
    # The cosines sit within 1e-3 of 1 and o.o - 2 c.o + c.c cancels: the last, n-sized steps are taken in float64.
    c_dot_o = (a_vis * (o @ v_vis.transpose(1, 2))).double().sum((0, 1))
    lengths = torch.linalg.vector_norm(v_vis, dim=-1).unsqueeze(1)
    c_dot_c = (a_vis * lengths).square().double().sum((0, 1))
    o_dot_o = o.double().square().sum()
    rest = o_dot_o - 2 * c_dot_o + c_dot_c
    o_dot_rest = o_dot_o - c_dot_o
    # Where one token is most of the output even that loses float32's digits; those few are subtracted as vectors.
    most = (rest < 0.1 * o_dot_o).nonzero().flatten()
    if most.numel():
        c = a_vis[..., most].unsqueeze(-1).double() * v_vis[:, most].unsqueeze(1).double()
        left = o.double().unsqueeze(2) - c  # [kv_heads, group, len(most), head_dim]
        rest[most] = left.square().sum((0, 1, 3))
        o_dot_rest[most] = (o.double().unsqueeze(2) * left).sum((0, 1, 3))
    cosine = o_dot_rest / (o_dot_o.sqrt() * rest.sqrt()).clamp(min=torch.finfo(torch.float64).tiny)
    return Influence(cosine.float(), c_dot_c.sqrt().float(), float(o_dot_o.sqrt()))


def _pick(tensor: Tensor, index: Tensor, dim: int) -> Tensor:
    """`index_select`, without a copy where the index is one unbroken span, as an image's tokens mostly are."""
    if not index.numel():
        return tensor.index_select(dim, index)
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == index.numel():
        return tensor.narrow(dim, first, last - first + 1)
    return tensor.index_select(dim, index)
