"""Models spread over several devices, on a machine that has one.

`Devices` lets every tensor say that it is on a device of its own, "cpu:0", "cpu:1" and so on, and fails where tensors
of unlike devices meet, as accelerators do. "cpu:0" stands for the host: tensors made without a device are on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

HOST = 0
_MOVES = {"to", "type_as", "copy_", "cpu"}
_SKIPPED = ["past_key_values", "cache"]
_INDEXES = {"__getitem__", "__setitem__", "index_put", "index_put_"}


class Devices(TorchFunctionMode):
    """While it is entered. Outside, tensors are what they always are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return torch.device("cpu", number_of(args[0]))
        given = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        if name not in _MOVES:
            _check_together(name, given)
        output = func(*args, **kwargs)
        number = _number_asked(name, args, kwargs)
        if number is None:
            number = max(map(number_of, given), default=HOST)
        if any(output is part for part in given) and number_of(output) != number:
            return put(output, number)  # moved: nothing to do for a machine with one device, but another tensor here
        return tree_map_only(Tensor, lambda part: _tagged(part, number), output)


def number_of(tensor: Tensor) -> int:
    """The device that a tensor says it is on."""
    return getattr(tensor, "_number", HOST)


def put(tensor: Tensor, number: int) -> Tensor:
    """The tensor on another device."""
    with torch._C.DisableTorchFunction():
        return _tagged(tensor.view_as(tensor), number)


def _tagged(tensor: Tensor, number: int) -> Tensor:
    tensor._number = number  # type: ignore[attr-defined]
    return tensor


def _check_together(name: str, given: list[Tensor]) -> None:
    """Scalars of the host may join any tensor, and tensors of it may say which rows to take."""
    found = {number_of(part) for part in given if part.ndim}
    if name in _INDEXES:
        found.discard(HOST)
    if len(found) > 1:
        raise RuntimeError(f"tensors on devices {sorted(found)} meet in {name}")


def _number_asked(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """The device that a call names, if any."""
    if name == "cpu":
        return HOST
    if name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
        return number_of(args[1])
    if name == "copy_":
        return number_of(args[0])
    named = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.device)]
    return (named[0].index or HOST) if named else None


@contextmanager
def spread(model: Any, places: Mapping[str, int]) -> Iterator[None]:
    """Runs `model` on device 1, with the modules named in `places` on theirs, as accelerate's `dispatch_model` does."""
    modules = [model, *map(model.get_submodule, places)]
    for module, number in zip(modules, [1, *places.values()], strict=True):
        for part in (*module.parameters(), *module.buffers()):
            _tagged(part, number)
        hook = AlignDevicesHook(torch.device("cpu", number), io_same_device=module is model, skip_keys=_SKIPPED)
        hook.init_hook = _nothing_to_place
        add_hook_to_module(module, hook)
    try:
        with Devices():
            yield
    finally:
        for module in modules:
            remove_hook_from_module(module)


def _nothing_to_place(module: nn.Module) -> nn.Module:
    return module
