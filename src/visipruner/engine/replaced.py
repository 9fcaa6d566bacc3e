"""Standing in front of methods of a host's modules, and stepping aside without a trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from torch import nn


class Replaced:
    """Methods of instances that somebody stands in front of until `remove`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def replace(self, module: nn.Module, name: str, call: Callable[..., Any]) -> None:
        """`module.name(...)` becomes `call(module.name, ...)`."""
        before, method = vars(module).get(name), getattr(module, name)  # accelerate, too, replaces methods of instances
        # Not a closure, which deep copies would share: a copy must not run the layers of the model it was made from.
        ours = update_wrapper(partial(call, method), method)
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
