"""VTW: all visual tokens leave at one layer, and the search for that layer.

"Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference", AAAI 2025,
arXiv 2405.05803.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, DroppingPruner
from visipruner.contract.settings import Layer
from visipruner.errors import ConfigError
from visipruner.models.shape import ModelShape


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

    layer: Layer = 15
    match_tolerance: ClassVar[float] = 0.03  # it comes in whole layers

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """All tokens in the first `share` of the layers."""
        depth = ModelShape.from_config(model.config).num_layers
        return replace(self, layer=min(depth - 1, round(share * depth)))

    def observes_entry(self, layer: int) -> bool:
        return layer == self.layer

    def select_entry(self, layer: int, view: EntryView) -> Tensor:
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
    from visipruner.fitting import Trials, divergence

    trials = Trials(model, prompts, visual_mask)
    plain = trials.plain()
    for layer in range(first, trials.depth):
        if divergence(plain, trials.pruned(VTW(layer=layer))) <= threshold:
            return layer
    raise ConfigError(f"No layer from {first} to {trials.depth - 1} meets the threshold {threshold}; raise it.")
