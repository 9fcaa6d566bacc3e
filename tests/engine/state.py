"""Everything that attaching could leave behind in a model, or change in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def state_of(model: nn.Module) -> dict[str, Any]:
    """Hooks by id, configs, attention implementations and attribute names."""
    hooks = {
        name: [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
        for name, module in model.named_modules()
    }
    config: Any = model.config
    configs = [config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    implementations = [part._attn_implementation for part in configs]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return {"hooks": hooks, "config": config.to_dict(), "attn": implementations, "attributes": attributes}


@contextmanager
def untouched(model: nn.Module, layers: Sequence[nn.Module], given: Mapping[str, Any]) -> Iterator[None]:
    """No parameter, no tensor of the call `given` and none that the layers are called with is changed in place."""
    seen: list[tuple[Tensor, int, Tensor]] = []

    def remember(_module: nn.Module, args: Any, kwargs: Any) -> None:
        values = [part for value in (*args, *kwargs.values()) for part in _parts(value)]
        seen.extend((value, value._version, value.clone()) for value in values)

    hooks = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in layers]
    remember(model, (), {**given, **dict(model.named_parameters())})
    first = len(seen)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    assert len(seen) >= first + len(layers), "the layers must be seen to run"
    for tensor, version, copy in seen:
        assert tensor._version == version
        assert torch.equal(tensor, copy)


def _parts(value: Any) -> list[Tensor]:
    return [part for part in (value if isinstance(value, tuple | list) else [value]) if torch.is_tensor(part)]
