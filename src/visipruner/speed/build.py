"""A model of a real shape with random weights, in seconds: nothing is stored that is not measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from visipruner.errors import ConfigError

_BLOCK = 1 << 20  # random numbers drawn once and repeated; products take the same time whatever they multiply


def empty_model(config: Any, dtype: torch.dtype, attn: str) -> Any:
    """The stock model of a config on the meta device: modules, no memory. Raises ConfigError."""
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn).eval()
    except ValueError as error:
        raise ConfigError(f"No model that reads images can be built from this config ({error}).") from error


def tie_layers(model: nn.Module) -> None:
    """Lets all layers of each stack share the parameters of its first one.

    Every layer stays a module of its own. Layers of other parameters than the first stay as they are. A layer that
    is larger than the processor's caches is read from memory as often as before, so that time stays what it was.
    """
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        first: dict[tuple[Any, ...], nn.Module] = {}
        for layer in stack:
            signature = tuple((name, tuple(part.shape)) for name, part in layer.named_parameters())
            owner = first.setdefault((type(layer), signature), layer)
            for mine, theirs in zip(layer.modules(), owner.modules(), strict=True):
                mine._parameters.update(theirs._parameters)


def parameter_bytes(model: nn.Module) -> int:
    """Memory of the parameters; what is shared counts once."""
    return sum(part.numel() * part.element_size() for part in model.parameters())


@torch.no_grad()
def fill(model: Any, device: torch.device, seed: int = 0) -> None:
    """Gives a model on the meta device memory: matrices small random numbers, norms one, biases zero.

    What is shared stays shared. Buffers (rotary frequencies, position numbers) get their true values.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed)).to(device) * 0.02
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, part in module._parameters.items():
            if part is None or part.device.type != "meta":
                continue
            if id(part) not in known:
                known[id(part)] = nn.Parameter(_values(part, name, block), requires_grad=False)
                known[id(part)]._is_hf_initialized = True  # type: ignore[attr-defined]
            module._parameters[name] = known[id(part)]
    for module in model.modules():
        missing = [name for name, part in module._buffers.items() if part is not None and part.device.type == "meta"]
        for name in missing:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        module._is_hf_initialized = not missing
    model.initialize_weights()  # transformers' own, for the modules that are left


def _values(like: Tensor, name: str, block: Tensor) -> Tensor:
    values = torch.empty(like.shape, dtype=like.dtype, device=block.device)
    if like.ndim < 2:
        return values.fill_(0.0 if "bias" in name else 1.0)
    flat = values.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(block[: part.numel()])
    return values
