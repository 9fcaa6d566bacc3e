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
        output_norm: ||o||_2, a scalar.
    """

    cosine: Tensor
    norm: Tensor
    output_norm: Tensor


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
    groups = (query.float() * scaling).view(keys.shape[0], -1, query.shape[-1])
    logits = softcapped(torch.bmm(groups, keys.float().transpose(1, 2)), softcap)
    return masked(logits, allowed).softmax(-1).flatten(0, 1)


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits with those of keys that may not be seen at -inf. `allowed`: bool, or float to be added; None for all."""
    if allowed is None:
        return logits
    return logits.masked_fill(~allowed, float("-inf")) if allowed.dtype == torch.bool else logits + allowed


def softcapped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits bounded smoothly to `(-softcap, softcap)`; as they are for None."""
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def influence(attention: Tensor, values: Tensor, visual: Tensor | slice) -> Influence:
    """`Influence` of the tokens `visual` from one row of attention (paper, section 4.2; here in O(n d)).

    Nothing of size [n_v, d] per head group is formed: c_j . o and ||c_j||^2 follow from per-head products,
    `c_j . o = sum_h a_hj (v_hj . o_h)` and `||c_j||^2 = sum_h a_hj^2 ||v_hj||^2`. Nothing is read from the device.

    Args:
        attention: `[heads, n]` float32 weights of the row. values: `[kv_heads, n, head_dim]`.
        visual: `[n_v]` long, columns of the visual tokens, ascending; a slice where they are one unbroken span.
    """
    a = attention.view(values.shape[0], -1, attention.shape[-1])  # [kv_heads, group, n]
    o = torch.bmm(a, values.float()).double()  # [kv_heads, group, head_dim]
    # The cosines sit within 1e-3 of 1 and o.o - 2 c.o + c.c cancels, above all where one token is most of the output:
    # from the output on, float64.
    a_vis, v_vis = (_pick(part, visual, dim).double() for part, dim in ((a, -1), (values, -2)))
    c_dot_o = (a_vis * torch.bmm(o, v_vis.transpose(1, 2))).sum((0, 1))
    lengths = torch.linalg.vector_norm(v_vis, dim=-1)
    norm = torch.linalg.vector_norm(a_vis * lengths.unsqueeze(1), dim=(0, 1))
    output_norm = torch.linalg.vector_norm(o)
    o_dot_rest = output_norm.square() - c_dot_o
    rest = torch.addcmul(o_dot_rest - c_dot_o, norm, norm).clamp(min=0).sqrt()
    cosine = o_dot_rest / (output_norm * rest).clamp(min=torch.finfo(torch.float64).tiny)
    return Influence(cosine.float(), norm.float(), output_norm.float())


def _pick(tensor: Tensor, where: Tensor | slice, dim: int) -> Tensor:
    if isinstance(where, slice):
        return tensor.narrow(dim, where.start, where.stop - where.start)
    return tensor.index_select(dim, where)
