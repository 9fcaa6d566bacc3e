"""Putting our attention function under a stock model's layers, and taking it away again without a trace."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from visipruner.engine import attention
from visipruner.engine.attention import Attends
from visipruner.engine.host import Host
from visipruner.engine.patch import Implementation
from visipruner.engine.guards import uncompiled
from visipruner.errors import VisiPrunerError

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class Attachment:
    """`owner` runs the attention of every layer of `host` until `remove`; `hooks`, set as they are iterated over,
    leave with it. Where it fails the model is as it was.

    Raises VisiPrunerError when the model has an owner already, UnsupportedModelError for an attention implementation
    that ours cannot stand in for.
    """

    def __init__(self, host: Host, owner: Attends, hooks: Iterable[RemovableHandle]) -> None:
        check_free(host)
        self._host, self._implementation = host, Implementation(host.configs, host.implementation)
        self._hooks: list[RemovableHandle] = []
        try:
            self._hooks.append(host.decoder.register_forward_pre_hook(uncompiled(self._check)))
            for hook in hooks:
                self._hooks.append(hook)
            for layer, module in enumerate(host.attentions):
                attention.own(module, owner, layer)
            self._implementation.put()
            _ATTACHED.add(host.decoder)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Hooks and attention implementation become what they were."""
        for hook in self._hooks:
            hook.remove()
        self._implementation.restore()
        for module in self._host.attentions:
            attention.disown(module)
        _ATTACHED.discard(self._host.decoder)

    def _check(self, module: nn.Module, args: Any) -> None:
        """Before the decoder runs, or a copy's that has this hook from it."""
        if module is not self._host.decoder:
            raise attention.copied()
        self._implementation.check()


def check_free(host: Host) -> None:
    """Raises VisiPrunerError when something is attached to the model already."""
    if host.decoder in _ATTACHED:
        raise VisiPrunerError(
            "This model has a pruner attached already; call .remove() on its handle first (a probe is closed by "
            ".close())."
        )
