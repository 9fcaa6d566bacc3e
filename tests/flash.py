"""Flash attention's functions in plain torch: the signatures and semantics of `flash_attn_func` and
`flash_attn_varlen_func` (causality from the bottom right, no mask), for machines without a GPU. They stand in for the
kernel alone; all of transformers' code around it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as utils

NAME = "flash_attention_2"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """`[batch, n, heads, head_dim]` queries, keys and values; the same shape back."""
    return torch.stack(
        [_one(*parts, softmax_scale, causal, window_size, softcap) for parts in zip(q, k, v, strict=True)]
    )


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
) -> Tensor:
    """`[sum of lengths, heads, head_dim]`, sequences one after another."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k) == len(v)
    assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    return torch.cat([_one(*part, softmax_scale, causal, window_size, softcap) for part in parts])


def _one(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: Any, softcap: float) -> Tensor:
    """One sequence, `[n, heads, head_dim]`."""
    groups = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    rows = torch.arange(len(q))[:, None] + len(k) - len(q)
    columns = torch.arange(len(k))[None]
    seen = columns <= rows if causal else torch.ones(len(q), len(k), dtype=torch.bool)
    if window[0] >= 0:
        seen = seen & (columns >= rows - window[0])
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights.nan_to_num(0), v)


def use_stand_in(monkeypatch: Any) -> None:
    """Lets transformers find these functions where it looks for the flash-attn package."""
    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)


def with_flash(model: Any) -> Any:
    """A model whose decoder runs flash attention."""
    for part in model.modules():
        config = getattr(part, "config", None)
        if config is not None and getattr(config, "_attn_implementation", None) == "sdpa" and _is_text(config):
            config._attn_implementation = NAME
    return model


def _is_text(config: Any) -> bool:
    return hasattr(config, "num_key_value_heads") or hasattr(config, "text_config")
