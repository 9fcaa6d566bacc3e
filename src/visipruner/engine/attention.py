"""The attention function of attached models: registered once with transformers, it hands every call to its engine."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    AttentionMaskInterface,
    eager_mask,
    flash_attention_mask,
    flex_attention_mask,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from visipruner.engine.masks import MaskForm
from visipruner.errors import UnsupportedModelError

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
PREFIX = "visipruner_"
TAKEN = ("sdpa", "eager", "flash_attention_2", "flex_attention")

# Queries, keys and values as a layer hands them to attention: `[batch, heads, n, head_dim]`.
QKV = tuple[Tensor, Tensor, Tensor]


class Attends(Protocol):
    """Whoever runs the attention of an attached layer."""

    def attend(
        self, layer: int, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]: ...


# transformers looks attention functions up by name only, so ours finds its engine by the module that calls it.
_OWNERS: weakref.WeakKeyDictionary[nn.Module, tuple[Attends, int]] = weakref.WeakKeyDictionary()


def attached_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Registered with transformers under `visipruner_<implementation>`; same contract as its own functions."""
    owned = _OWNERS.get(module)
    if owned is None:
        raise copied()
    owner, layer = owned
    return owner.attend(layer, module, (query, key, value), attention_mask, kwargs)


def copied() -> UnsupportedModelError:
    """What a deep copy of an attached model says: it has our hooks and our name in its config, but no engine."""
    return UnsupportedModelError(
        "This model is a copy of one with a pruner attached; copy it without, or load it anew."
    )


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
        raise unsupported(implementation)
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, attached_attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


# By the function that makes the whole prompt's masks: how kernels are told what a row may see.
_FORMS = {eager_mask: MaskForm.ADDED, flash_attention_mask: MaskForm.LENGTHS, flex_attention_mask: MaskForm.BLOCKS}


def form_of(implementation: str) -> MaskForm:
    """How kernels of this implementation are told which keys a row may see. Raises UnsupportedModelError for those that
    are not."""
    makes = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation)
    if makes is None:
        raise unsupported(implementation)
    return _FORMS.get(makes, MaskForm.BOOL)


def unsupported(implementation: str, others: Sequence[str] = TAKEN) -> UnsupportedModelError:
    """What is said of an attention implementation that ours cannot stand in for, but for `others`."""
    names = ", ".join(map(repr, others[:-1]))
    return UnsupportedModelError(
        f"Attention implementation {implementation!r} cannot be attached to; load the model with "
        f"attn_implementation={names} or {others[-1]!r}."
    )


def host_kernel(module: nn.Module, implementation: str) -> Kernel:
    """The function the model would have run without us."""
    if implementation == "eager":
        # Every family defines its own eager function beside its attention class (softcaps, sinks, ...).
        kernel = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if kernel is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no eager attention; use attn_implementation='sdpa'."
            )
        return kernel  # type: ignore[no-any-return]
    registered: Kernel = ALL_ATTENTION_FUNCTIONS[implementation]
    if form_of(implementation) is not MaskForm.LENGTHS:
        return registered

    def flash(caller: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        # transformers picks the flash kernel by the name in the caller's config, where ours stands now.
        return registered(_AsLoaded(caller, implementation), *args, **kwargs)

    return flash


class _AsLoaded:
    """A module, or its config, as it was before our attention function's name was put into the config."""

    def __init__(self, inner: Any, implementation: str) -> None:
        self._inner, self._attn_implementation = inner, implementation

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return _AsLoaded(found, self._attn_implementation) if name == "config" else found


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which `torch.compile` will call and not look into."""
    disable: Any = torch.compiler.disable  # its annotations are not complete
    return disable(function)  # type: ignore[no-any-return]
