"""FastV: tokens that the last row attends to least in an early layer leave.

"An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
ECCV 2024, arXiv 2403.06764.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.contract.budget import ScoredPruner
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About


@dataclass(frozen=True, kw_only=True)
class FastV(ScoredPruner):
    """Score: the last row's attention in layer K - 1, mean over heads; tokens leave before layer K (`layer`).

    The paper speaks of the attention a token receives on average; the released code takes the last row alone, and so
    do we. The modes of that code that its numbers were made with keep no cache and choose anew for every generated
    token, by that token's row; its version with a cache chooses once, by the prompt's last row, as we do. The first
    token is the same in all of them, later ones of long answers may differ. Defaults: K = 2, half of the tokens.
    """

    name: ClassVar[str] = "fastv"
    about: ClassVar[About] = About(
        "FastV: least attended by the last row in an early layer leave",
        paper="Chen et al., ECCV 2024, arXiv 2403.06764",
        acts="before layer 2",
        needs="last row's attention",
    )
    reads_last_row_only: ClassVar[bool] = True

    def score(self, view: LayerView) -> Tensor:
        return view.attention[:, view.visual].mean(0)
