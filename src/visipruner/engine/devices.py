"""Models spread over several devices: where a layer runs, and what the host hands to all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def device_of(layer: nn.Module, hidden: Tensor) -> torch.device:
    """Where a layer runs that is given `hidden`: accelerate's hook takes it there, or it is there already."""
    wanted = getattr(getattr(layer, "_hf_hook", None), "execution_device", None)
    return hidden.device if wanted is None else torch.device(wanted)


class Copies:
    """Arguments that a host hands to each of its layers, copied once to every other device that layers run on."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, torch.device], tuple[Any, Any]] = {}

    def on(self, device: torch.device, kwargs: dict[str, Any]) -> dict[str, Any]:
        """`kwargs` with their tensors, and tuples of tensors, on `device`; the same objects for the same arguments."""
        return {name: self._copy(device, given) for name, given in kwargs.items()}

    def _copy(self, device: torch.device, given: Any) -> Any:
        if not isinstance(given, Tensor | tuple):
            return given
        key = (id(given), device)
        if key not in self._known:  # what was given is kept too, so that its id stays its own
            self._known[key] = (given, _moved(device, given))
        return self._known[key][1]


def _moved(device: torch.device, given: Any) -> Any:
    if isinstance(given, tuple):
        return tuple(_moved(device, part) for part in given)
    return given.to(device) if isinstance(given, Tensor) else given
