"""A model without what is attached to it: the same weights, none of our hooks. `torch.compile` looks into it, where
every hook of ours would split its graph."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Set
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from visipruner.engine.attention import PREFIX
from visipruner.engine.host import Host
from visipruner.engine.patch import InFront
from visipruner.errors import UnsupportedModelError

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_ENTER = -1  # the number of the twin's own hook; PyTorch's begin at 0
# What a module knows of having been compiled, which was without us; a twin has its own.
_COMPILED = {"_compiled_call", "_last_compile_config", "_compiled_call_impl"}


class Twin:
    """Modules with something of ours in or below them, copied without it; all others are shared, and so are weights.

    Args:
        hook_ids: the numbers of our hooks. enter: by layer, what the twin's layers are entered through.
    """

    def __init__(
        self, model: nn.Module, host: Host, hook_ids: Set[int], enter: Callable[[int], Callable[..., Any]]
    ) -> None:
        self._model, self._host, self._ours = model, host, hook_ids
        self._enter = {layer: enter(number) for number, layer in enumerate(host.layers)}
        self._made: dict[nn.Module, nn.Module] = {}

    def refresh(self) -> nn.Module:
        """The twin as the model is now: its mode, its adapters, hooks of others. It stays the same object, which need
        not be compiled again. Raises UnsupportedModelError where somebody else stands in front of a module."""
        implementation = _grouped() if self._host.implementation == "sdpa" else self._host.implementation
        configs = {id(config): copy.copy(config) for config in self._host.configs}
        for config in configs.values():  # the setter would change what the copies share, too
            config._attn_implementation_internal = implementation
        return self._of(self._model, configs, {})

    def _of(self, module: nn.Module, configs: dict[int, Any], known: dict[nn.Module, nn.Module]) -> nn.Module:
        if module in known:
            return known[module]
        parts = self._without_ours(module)
        if module is self._host.decoder or module in self._host.attentions:
            config = configs.get(id(getattr(module, "config", None)))
            if config is not None:
                parts["config"] = config
        children: dict[str, nn.Module | None] = {
            name: None if child is None else self._of(child, configs, known) for name, child in module._modules.items()
        }
        if parts or any(children[name] is not child for name, child in module._modules.items()):
            known[module] = self._updated(module, {**parts, "_modules": children})
        else:
            known[module] = module
        return known[module]

    def _without_ours(self, module: nn.Module) -> dict[str, Any]:
        """Attributes of `module` that have something of ours, without it."""
        parts: dict[str, Any] = {}
        for name in _HOOKS:
            held = vars(module)[name]
            left = OrderedDict((number, hook) for number, hook in held.items() if number not in self._ours)
            if len(left) < len(held):
                parts[name] = left
        if module in self._enter:
            parts["_forward_pre_hooks"][_ENTER] = self._enter[module]
            parts["_forward_pre_hooks_with_kwargs"][_ENTER] = True
        return parts

    def _updated(self, module: nn.Module, parts: dict[str, Any]) -> nn.Module:
        twin = self._made.get(module)
        if twin is None:
            twin = self._made[module] = type(module).__new__(type(module))
        now = {name: given for name, given in vars(module).items() if name not in _COMPILED}
        now = {name: given for name, given in now.items() if not isinstance(given, InFront)}
        if "forward" in now:
            raise UnsupportedModelError(
                f"Another function runs in place of {type(module).__name__}.forward (as accelerate's where layers are "
                "on several devices), so a step of the answer cannot be compiled while visual tokens are pruned; pass "
                "disable_compile=True."
            )
        held = vars(twin)
        for name in held.keys() - now.keys() - _COMPILED:
            del held[name]
        # What is equal stays the same object, which compiled code may look at.
        held.update(now | {name: held[name] if held.get(name) == part else part for name, part in parts.items()})
        return twin


def _grouped() -> str:
    """The name of `grouped_attention`, registered with transformers."""
    name = f"{PREFIX}grouped"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, grouped_attention)
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return name


class _Plain:
    """A module that says nothing of groups."""

    is_causal = False


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """sdpa of one new row, where the query heads that share a key head become rows: compiled, transformers would repeat
    keys and values for each of them, 7 times in a 0.5B model. Same contract as its own functions."""
    batch, heads, rows, dim = query.shape
    groups = heads // key.shape[1]
    is_shared = attention_mask is not None and attention_mask.shape[1] == 1 and kwargs.get("position_bias") is None
    if rows > 1 or groups == 1 or not is_shared:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    query = query.reshape(batch, key.shape[1], groups, dim)
    output, _ = sdpa_attention_forward(_Plain(), query, key, value, attention_mask, **kwargs)
    return output.transpose(1, 2).reshape(batch, 1, heads, -1), None
