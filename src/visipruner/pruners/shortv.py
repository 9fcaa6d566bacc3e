"""ShortV: in layers where it matters little what becomes of visual tokens, nothing becomes of them.

"ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective Layers", ICCV 2025,
arXiv 2504.00502.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from visipruner.contract.about import About
from visipruner.contract.budget import check_layers, scaled_layer
from visipruner.contract.divergence import divergence, next_token
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.routing import FROZEN, PLAIN, Routing
from visipruner.errors import ConfigError

_ORDERS: WeakKeyDictionary[nn.Module, tuple[object, tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class ShortV(Pruner):
    """Visual tokens pass some layers by: there they only give keys and values, so text rows see them as they are.

    No token leaves. A frozen layer spares its visual rows the queries, the output projection and the FFN, which is
    most of a layer, the more so where few heads share keys.

    Attributes:
        layers: the frozen layers. The paper's 19 of LLaVA-1.5-7B by default; `rank_layers` repeats its measurement for
            another model.
    """

    name: ClassVar[str] = "shortv"
    about: ClassVar[About] = About(
        "ShortV: visual tokens are frozen in the layers that change the answer least",
        paper="Yuan et al., ICCV 2025, arXiv 2504.00502",
        acts="19 of 32 layers",
    )
    match_tolerance: ClassVar[float] = 0.03  # it comes in whole layers

    layers: tuple[int, ...] = (0, 2, 3, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if any(layer < 0 for layer in self.layers):
            raise ConfigError(f"layers cannot be negative, got {list(self.layers)}.")

    def check(self, num_layers: int) -> None:
        check_layers(num_layers, *self.layers)

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        return cls(layers=tuple(min(num_layers - 1, scaled_layer(layer, num_layers)) for layer in cls.layers))

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """Only the `share` of the layers that contribute most on `prompts` run visual tokens."""
        known = _ORDERS.get(model)
        if known is None or known[0] is not prompts:
            known = _ORDERS[model] = (prompts, rank_layers(model, prompts))
        order = known[1]
        return replace(self, layers=order[: round((1 - share) * len(order))])

    def routing(self, layer: int) -> Routing:
        return FROZEN if layer in self.layers else PLAIN

    def start(self) -> PromptRun:
        return PromptRun()


def rank_layers(
    model: nn.Module, prompts: Iterable[Mapping[str, Any]], visual_mask: Tensor | None = None
) -> tuple[int, ...]:
    """All layers, those first whose update of visual tokens contributes least.

    A layer's contribution is the mean over examples of KL(p_frozen || p_full) of the next-token distributions, the
    direction of the released code, with the visual tokens frozen in this layer alone.

    Args:
        prompts: keyword arguments of forward calls, about 20 examples. visual_mask: as in `attach`.

    Raises ConfigError when there are no prompts.
    """
    from visipruner.engine.attach import attach
    from visipruner.engine.host import depth_of

    calls = list(prompts)
    if not calls:
        raise ConfigError("rank_layers needs at least one prompt.")
    dense = [next_token(model, call) for call in calls]
    contributions = []
    for layer in range(depth_of(model)):
        with attach(model, ShortV(layers=(layer,)), visual_mask):
            contributions.append(divergence(dense, [next_token(model, call) for call in calls]))
    return tuple(torch.tensor(contributions).argsort(stable=True).tolist())
