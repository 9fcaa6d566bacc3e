"""Where a model goes: a device of torch, or all of them through accelerate."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from visipruner.errors import LoadError

SPREAD = "spread"


def resolve(name: str) -> str:
    """`name` as torch writes it, `SPREAD`, or for an empty name this process's own accelerator, else the CPU.

    Raises LoadError for a device that this machine does not have.
    """
    import torch

    if name == SPREAD:
        if find_spec("accelerate") is None:
            raise LoadError("The device 'spread' needs the package accelerate: pip install accelerate.")
        return SPREAD
    if not name:
        return first()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise LoadError(f"{name!r} is not a device of this machine; it has {', '.join(_present())}.") from error
    if device.type == "meta":
        raise LoadError(f"The device {name!r} cannot compute; this machine has {', '.join(_present())}.")
    return str(device)


def first() -> str:
    """The accelerator of this process (of several on a machine, each has its own), or the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return "cpu"
    kind = torch.accelerator.current_accelerator()
    place = int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()
    return "cpu" if kind is None else f"{kind.type}:{place}"


def placed(place: str) -> dict[str, Any]:
    """What `from_pretrained` must be told."""
    if place == "cpu":
        return {}
    return {"device_map": "auto" if place == SPREAD else {"": place}}


def _present() -> list[str]:
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator() if count else None
    return ["cpu", *(f"{kind.type}:{index}" for index in range(count) if kind is not None)]
