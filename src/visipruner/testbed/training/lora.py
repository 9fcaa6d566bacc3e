"""Low-rank updates of frozen linear layers (Hu et al. 2021, "LoRA"), and their folding into plain weights."""

import math

import torch
from torch import Tensor, nn

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    """Replace every attention and MLP projection of a decoder; returns the new modules by the name of the layer they
    stand for."""
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
def fold_lora(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Add `B A` to the weights of plain linear layers; `state` holds `<layer>.lora_a` and `<layer>.lora_b`."""
    for key in state:
        if key.endswith(".lora_a"):
            layer = key.removesuffix(".lora_a")
            weight = model.get_parameter(f"{layer}.weight")
            update = state[f"{layer}.lora_b"].float() @ state[key].float()
            weight.add_(update.to(weight.dtype))
