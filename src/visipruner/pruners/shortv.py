"""ShortV: visual tokens pause in the layers where updating them changes the answer least.

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

from visipruner.contract.pruner import About, Pruner
from visipruner.contract.routing import FROZEN, PLAIN, Routing
from visipruner.contract.settings import Layer, scaled_layer

_ORDERS: WeakKeyDictionary[nn.Module, tuple[object, tuple[int, ...]]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class ShortV(Pruner):
    """Visual tokens pause in some layers: there they only give keys and values, so text rows see them as they are.

    No token leaves. A frozen layer spares its visual rows the queries, the output projection and the FFN, which is
    most of a layer, the more so where few heads share keys.

    Attributes:
        layers: the frozen layers. The paper's 19 of LLaVA-1.5-7B by default; `rank_layers` repeats its measurement for
            another model.
    """

    name: ClassVar[str] = "shortv"
    about: ClassVar[About] = About(
        "ShortV: visual tokens pause in the layers that change the answer least",
        paper="Yuan et al., ICCV 2025, arXiv 2504.00502",
        acts="19 of 32 layers",
    )
    match_tolerance: ClassVar[float] = 0.03  # it comes in whole layers

    layers: tuple[Layer, ...] = (0, 2, 3, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

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
    from visipruner.fitting import Trials, divergence

    trials = Trials(model, prompts, visual_mask)
    plain = trials.plain()
    frozen = [trials.pruned(ShortV(layers=(layer,))) for layer in range(trials.depth)]
    contributions = torch.tensor([divergence(plain, changed) for changed in frozen])
    return tuple(contributions.argsort(stable=True).tolist())
