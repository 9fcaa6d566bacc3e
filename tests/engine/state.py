"""Everything that attaching could leave behind in a model."""

from __future__ import annotations

from typing import Any

from torch import nn


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
