"""What a user hands over to be attached to: the stock model in it, or one sentence on what to hand over instead."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from visipruner.errors import UnsupportedModelError


def stock_model(model: Any) -> nn.Module:
    """The transformers model inside what `torch.compile` and peft put around it.

    Raises UnsupportedModelError for anything else around it, and for a model without its head: `generate` belongs to
    the model around it, which then could not refuse what would prune the wrong rows.
    """
    found: Any = model
    while True:
        if isinstance(getattr(found, "_orig_mod", None), nn.Module):  # torch.compile
            found = found._orig_mod
        elif isinstance(found, nn.Module) and callable(getattr(found, "get_base_model", None)):  # peft
            found = cast(Any, found).get_base_model()
        else:
            break
    name = type(found).__name__
    if not isinstance(found, nn.Module):
        raise UnsupportedModelError(
            f"A pruner is attached to a model, not to a {name}; load one with "
            "AutoModelForImageTextToText.from_pretrained."
        )
    if not hasattr(found, "config"):
        raise UnsupportedModelError(
            f"{name} is no transformers model; give the one inside it"
            f"{' (its .module)' if hasattr(found, 'module') else ''}."
        )
    if _is_headless(found):
        raise UnsupportedModelError(
            f"{name} is a model without its head, whose generate could not be kept from reading a prompt in parts; "
            "give the whole model, loaded with AutoModelForImageTextToText or AutoModelForCausalLM (the parts that you "
            "call alone are pruned with it)."
        )
    return found


def _is_headless(model: Any) -> bool:
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and not can_generate() and model.base_model is model
