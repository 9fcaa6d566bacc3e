"""The attention function attached models run: their own kernel, plus routed edges and the rows a score needs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from visipruner.engine.routing import Edge
from visipruner.errors import UnsupportedModelError

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
PREFIX = "visipruner_"


class Attends(Protocol):
    """Whoever runs the attention of an attached layer."""

    def attend(
        self, layer: int, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]: ...


# transformers looks attention functions up by name only, so ours finds its engine by the module that calls it.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, tuple[Attends, int]] = weakref.WeakKeyDictionary()


def attached_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Registered with transformers under `visipruner_<implementation>`; same contract as its own functions."""
    owner, layer = _OWNERS[module]
    return owner.attend(layer, module, query, key, value, attention_mask, kwargs)


def own(module: nn.Module, owner: Attends, layer: int) -> None:
    """Makes `owner` run the attention of `module`, layer number `layer`."""
    _OWNERS[module] = (owner, layer)


def disown(module: nn.Module) -> None:
    """Undoes `own`."""
    _OWNERS.pop(module, None)


def register(implementation: str) -> str:
    """Registers the attached attention beside `implementation`, with the same mask function; returns its name."""
    name = PREFIX + implementation
    if implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise UnsupportedModelError(
            f"Attention implementation {implementation!r} cannot be attached to; load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, attached_attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def host_kernel(module: nn.Module, implementation: str) -> Kernel:
    """The function the model would have run without us."""
    if implementation == "eager":
        # Every family defines its own eager function beside its attention class (softcaps, sinks, ...).
        kernel = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if kernel is None:
            raise UnsupportedModelError(f"{type(module).__name__} has no eager attention; use attn_implementation='sdpa'.")
        return kernel  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[implementation]  # type: ignore[no-any-return]


def edge_mask(allowed: Tensor, bias: Tensor | None, eager: bool, dtype: torch.dtype) -> tuple[Tensor | None, bool]:
    """The cheapest (mask, is_causal) that tells a kernel the edges `allowed`, `[queries, keys]` bool.

    `bias`, `[keys]`, is added to the logits. Eager kernels need an additive mask always; the others run their fast
    paths on None. The mask returned is `[1, 1, queries, keys]`.
    """
    lowest = torch.finfo(dtype).min
    if bias is not None:
        additive = torch.where(allowed, bias.to(dtype), lowest)
        return additive[None, None], False
    if eager:
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), lowest)[None, None], False
    queries, keys = allowed.shape
    if queries > 1 and queries == keys and torch.equal(allowed, torch.ones_like(allowed).tril()):
        return None, True
    if bool(allowed.all()):
        return None, False
    return allowed[None, None], False


def edge_keys(edge: Edge, keys: Tensor, values: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values `[1, kv_heads, n, head_dim]` behind an edge, and which of the n rows remain (None for all).

    Zeroing weights after the softmax is the same as zeroing the values they multiply, and moving their sum to a sink
    is the same as giving every visual row the sink's value: no attention map is needed for either.
    """
    if edge == "attend":
        return keys, values, None
    if edge == "cut":
        kept = (~visual).nonzero().flatten()
        return keys[:, :, kept], values[:, :, kept], kept
    return keys, edge_values(edge, values, visual), None


def edge_values(edge: Edge, values: Tensor, visual: Tensor) -> Tensor:
    """Values `[..., n, head_dim]` with those of the rows `visual`, `[n]` bool, as the edge has them."""
    where = visual.nonzero().flatten()
    if edge == "merge":
        return values.index_copy(-2, where, values[..., where[:1], :].expand(*values.shape[:-2], len(where), -1))
    if edge == "zero_first_half":
        where = where[: len(where) // 2]
    elif edge != "zero":
        return values
    return values.index_fill(-2, where, 0)


def call_kernel(
    kernel: Kernel,
    module: nn.Module,
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: tuple[Tensor | None, bool],
    kwargs: Mapping[str, Any],
) -> Tensor:
    """Runs a kernel on one group of rows; returns `[1, queries, heads, head_dim]`."""
    attention_mask, is_causal = mask
    extra = {} if attention_mask is not None else {"is_causal": is_causal}
    output, _ = kernel(module, *qkv, attention_mask, **{**kwargs, **extra})
    return output
