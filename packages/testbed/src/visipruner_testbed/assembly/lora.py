"""Low-rank updates of frozen linear layers (Hu et al. 2021, "LoRA"), and their folding into plain weights."""

import math

import torch
from torch import Tensor, nn

from visipruner.errors import ConfigError

# Of the decoder and of the vision transformer.
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2")


class LoraLinear(nn.Module):
    """`W x + B A x` with W frozen; A [rank, in] and B [out, rank] are float32 and used in the dtype of the input."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        low = nn.functional.linear(x, self.lora_a.to(x.dtype))
        update: Tensor = nn.functional.linear(low, self.lora_b.to(x.dtype))
        base: Tensor = self.base(x)
        return base + update


def add_lora(model: nn.Module, rank: int) -> dict[str, LoraLinear]:
    """Replace every attention and MLP projection of a transformer; returns the new modules by the name of the layer
    they stand for."""
    found = [(name, module) for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in ADAPTED]
    adapted = {}
    for name, module in found:
        if not isinstance(module, nn.Linear):
            raise TypeError(f"{name} is {type(module).__name__}, not a linear layer")
        parent, _, child = name.rpartition(".")
        adapted[name] = LoraLinear(module, rank)
        setattr(model.get_submodule(parent), child, adapted[name])
    return adapted


@torch.no_grad()
def load_lora(adapted: dict[str, LoraLinear], state: dict[str, Tensor]) -> None:
    """Go on with factors learnt before, `<layer>.lora_a` and `<layer>.lora_b`; an empty `state` leaves the fresh ones.

    Raises ConfigError for another rank.
    """
    if not state:
        return
    for name, module in adapted.items():
        first, second = state[f"{name}.lora_a"], state[f"{name}.lora_b"]
        if first.shape != module.lora_a.shape:
            raise ConfigError(f"The earlier weights have LoRA rank {len(first)}; continue with the same rank.")
        module.lora_a.copy_(first)
        module.lora_b.copy_(second)


def remove_lora(model: nn.Module) -> None:
    """Put the plain linear layers back, without the updates."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base)


@torch.no_grad()
def fold_lora(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Add `B A` to the weights of plain linear layers; `state` holds `<layer>.lora_a` and `<layer>.lora_b`."""
    for key in state:
        if key.endswith(".lora_a"):
            layer = key.removesuffix(".lora_a")
            weight = model.get_parameter(f"{layer}.weight")
            update = state[f"{layer}.lora_b"].float() @ state[key].float()
            weight.add_(update.to(weight.dtype))
