"""Attaching a pruner to a stock transformers model, and taking it off again without a trace."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from visipruner.adapters import Adapter, adapter_for
from visipruner.engine import attention
from visipruner.engine.hooks import Hooks
from visipruner.engine.host import Host
from visipruner.engine.trace import PruneTrace
from visipruner.errors import LayoutError, VisiPrunerError
from visipruner.layout import check_visual_mask
from visipruner.pruners.base import Pruner

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(
    model: nn.Module, pruner: Pruner, visual_mask: Tensor | None = None, *, adapter: Adapter | None = None
) -> PruneHandle:
    """Makes `model` prune visual tokens until the handle is removed.

    Args:
        model: a stock transformers model: a multimodal one, or a text decoder that is called with `inputs_embeds`.
        pruner: the method, for example `VisiPruner()`.
        visual_mask: `[batch, seq]` bool, True on the visual rows of the prompt. Needed for text decoders and for
            multimodal models called with ready-made `inputs_embeds`; others find their visual rows by themselves.
        adapter: describes a family this library does not know.

    Returns:
        A handle, usable as a context manager, with `.remove()` and `.trace`.

    Raises:
        UnsupportedModelError: the model's family or attention implementation is not supported.
        LayoutError: the mask is malformed, or missing where it is needed.
        ConfigError: the pruner's settings do not fit the model.
        VisiPrunerError: the model has a pruner attached already.
    """
    chosen = adapter or adapter_for(model.config)
    if visual_mask is not None:
        check_visual_mask(visual_mask)
    elif chosen.locate is None:
        raise LayoutError(
            f"A {chosen.family} does not say which rows are visual; pass attach(model, pruner, visual_mask=mask) "
            "with a [batch, seq] bool mask."
        )
    host = Host.of(model, chosen)
    pruner.check(len(host.layers))
    if host.decoder in _ATTACHED:
        raise VisiPrunerError("This model has a pruner attached already; call .remove() on its handle first.")
    return PruneHandle(host, pruner, visual_mask)


class PruneHandle:
    """A pruner attached to a model, made by `attach`. `trace` tells what happened to the last prompt(s)."""

    def __init__(self, host: Host, pruner: Pruner, visual_mask: Tensor | None) -> None:
        self.pruner = pruner
        self._host = host
        name = attention.register(host.implementation)
        self._hooks = Hooks(host, pruner, visual_mask)
        self._removable = self._hooks.install()
        for layer, module in enumerate(host.attentions):
            attention.own(module, self._hooks, layer)
        for config in host.configs:
            config._attn_implementation = name
        _ATTACHED.add(host.decoder)

    @property
    def is_attached(self) -> bool:
        return self._hooks.is_attached

    @property
    def trace(self) -> PruneTrace:
        """What happened to the last prompt(s). Raises VisiPrunerError before the first."""
        if self._hooks.trace is None:
            raise VisiPrunerError("There is no trace yet: run the model on a prompt first.")
        return self._hooks.trace

    def remove(self) -> None:
        """Restores the model: hooks, config and attention implementation are what they were. Safe to call twice."""
        if not self.is_attached:
            return
        for hook in self._removable:
            hook.remove()
        for config in self._host.configs:
            config._attn_implementation = self._host.implementation
        for module in self._host.attentions:
            attention.disown(module)
        _ATTACHED.discard(self._host.decoder)
        self._hooks.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
