"""Every change to a stock model, and its undo: hooks, methods of modules, and the name of the attention function."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial, update_wrapper
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from visipruner.engine import attention
from visipruner.engine.attention import Attends, uncompiled
from visipruner.engine.host import Host
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

    @property
    def hook_ids(self) -> frozenset[int]:
        """The numbers that PyTorch gave the hooks."""
        return frozenset(hook.id for hook in self._hooks)

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


class Implementation:
    """Our attention function in place of `before` in `configs`, from `put` to `restore`.

    Raises UnsupportedModelError for an attention implementation that ours cannot stand in for.
    """

    def __init__(self, configs: Sequence[Any], before: str) -> None:
        self._configs, self._before, self._name = configs, before, attention.register(before)

    def put(self) -> None:
        """The layers call our function from now on."""
        for config in self._configs:
            config._attn_implementation = self._name

    def check(self) -> None:
        """Raises VisiPrunerError where somebody chose another implementation meanwhile: hooks alone would do half."""
        for config in self._configs:
            if config._attn_implementation != self._name:
                raise VisiPrunerError(
                    f"The attention implementation was set to {config._attn_implementation!r} under an attached "
                    "pruner; call .remove() on its handle (a probe: .close()), set it, and attach again (an aligned "
                    "model: call set_attn_implementation on the model itself)."
                )

    def restore(self) -> None:
        """The configs name what they named before; what somebody chose meanwhile stays."""
        for config in self._configs:
            if config._attn_implementation == self._name:
                config._attn_implementation = self._before


class InFront(partial[Any]):
    """What stands in front of a method of an instance."""


class Replaced:
    """Methods of instances that somebody stands in front of until `remove`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def replace(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        """`module.name(...)` becomes `call(module.name, ...)`."""
        before, method = vars(module).get(name), getattr(module, name)  # accelerate, too, replaces methods of instances
        # Not a closure, which deep copies would share: a copy must not run the layers of the model it was made from.
        ours = update_wrapper(InFront(call, method), method)
        setattr(module, name, ours)
        self._undo.append(partial(_put_back, module, name, ours, before))

    def remove(self) -> None:
        """The modules' own methods are back."""
        for undo in self._undo:
            undo()
        self._undo = []


def _put_back(module: nn.Module, name: str, ours: Any, before: Any) -> None:
    if vars(module).get(name) is not ours:
        return  # wrapped meanwhile by somebody who goes on to need it
    if before is None:
        delattr(module, name)
    else:
        setattr(module, name, before)
