"""VTW: all visual tokens leave at one layer, and the search for that layer.

"Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference", AAAI 2025,
arXiv 2405.05803.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from visipruner.contract.about import About
from visipruner.contract.budget import check_layers, scaled_layer
from visipruner.contract.divergence import divergence, next_token
from visipruner.contract.dropping import DroppingPruner
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import PromptRun
from visipruner.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VTW(DroppingPruner):
    """Every visual token leaves before layer K.

    Attributes:
        layer: K; 0 is the model without its images. The paper uses 15 for LLaVA-1.5-7B and 20 for 13B; `find_layer`
            repeats its search for another model.
    """

    name: ClassVar[str] = "vtw"
    about: ClassVar[About] = About(
        "VTW: all visual tokens leave at one layer",
        paper="Lin et al., AAAI 2025, arXiv 2405.05803",
        acts="before layer 15",
    )

    layer: int = 15
    match_tolerance: ClassVar[float] = 0.03  # it comes in whole layers

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 0:
            raise ConfigError(f"layer cannot be negative, got {self.layer}.")

    def check(self, num_layers: int) -> None:
        check_layers(num_layers, self.layer)

    @classmethod
    def for_depth(cls, num_layers: int) -> Self:
        return cls(layer=scaled_layer(cls.layer, num_layers))

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """All tokens in the first `share` of the layers."""
        from visipruner.engine.host import depth_of

        return replace(self, layer=min(depth_of(model) - 1, round(share * depth_of(model))))

    def start(self) -> PromptRun:
        return _Withdrawal(self.layer)


class _Withdrawal(PromptRun):
    def __init__(self, layer: int) -> None:
        super().__init__()
        self._layer = layer

    def observes_entry(self, layer: int) -> bool:
        return layer == self._layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        return view.tokens[:0]


def find_layer(
    model: nn.Module,
    prompts: Iterable[Mapping[str, Any]],
    threshold: float = 0.003,
    first: int = 5,
    visual_mask: Tensor | None = None,
) -> int:
    """The paper's search: the first layer K >= `first` where withdrawal hardly changes the next token.

    That is, where the mean over examples of KL(p_withdrawn || p_full) of the next-token distributions, the direction of
    the released code, is at most `threshold`; 0.003 is the paper's for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for NeXT.

    Args:
        prompts: keyword arguments of forward calls, about 20 examples. visual_mask: as in `attach`.

    Raises:
        ConfigError: there are no prompts, or no layer of the model meets the threshold.
    """
    from visipruner.engine.attach import attach
    from visipruner.engine.host import depth_of

    calls = list(prompts)
    if not calls:
        raise ConfigError("find_layer needs at least one prompt.")
    dense = [next_token(model, call) for call in calls]
    depth = depth_of(model)
    for layer in range(first, depth):
        with attach(model, VTW(layer=layer), visual_mask):
            withdrawn = [next_token(model, call) for call in calls]
        if divergence(dense, withdrawn) <= threshold:
            return layer
    raise ConfigError(f"No layer from {first} to {depth - 1} meets the threshold {threshold}; raise it.")
