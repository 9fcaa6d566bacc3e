"""What the plug-in reads of vLLM's models, and how it runs their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.integrations.vllm.step import QKV


def decoder_of(runner: Any) -> nn.Module:
    """The stack of text layers."""
    model = runner.get_model()
    return model.get_language_model().model  # type: ignore[no-any-return]


def layers_of(decoder: nn.Module) -> list[nn.Module]:
    return list(decoder.layers)  # type: ignore[arg-type]


def attention_of(layer: nn.Module) -> nn.Module:
    return layer.self_attn.attn  # type: ignore[union-attr, return-value]


def backend_of(layer: nn.Module) -> str:
    """The name of what computes a layer's attention."""
    return str(attention_of(layer).attn_backend.get_name())  # type: ignore[operator, union-attr]


def is_windowed(layer: nn.Module) -> bool:
    """Whether a layer's attention sees only so many keys back."""
    return attention_of(layer).sliding_window is not None


def scaling_of(attention: Any) -> tuple[float, float | None]:
    """The factor of the logits, and their softcap."""
    return float(attention.impl.scale), float(attention.impl.logits_soft_cap or 0) or None


def by_head(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> QKV:
    """`[rows, heads, head_dim]` each."""
    kv_heads = attention.num_kv_heads
    return (
        q.view(-1, attention.num_heads, attention.head_size),
        k.view(-1, kv_heads, attention.head_size),
        v.view(-1, kv_heads, attention.head_size_v),
    )


def run_attention(layer: Any, positions: Tensor, states: Tensor, until: type[Exception]) -> None:
    """Runs a layer's norm and attention on some rows until `until` is raised in it."""
    try:
        layer.self_attn(positions=positions, hidden_states=layer.input_layernorm(states))
    except until:
        return
    raise AssertionError("the attention was not called")


def rows_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many rows a decoder is called with."""
    return int(_positions(args, kwargs).shape[-1])


def device_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    return _positions(args, kwargs).device


def _positions(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    found: Tensor = kwargs["positions"] if "positions" in kwargs else args[1]
    return found
