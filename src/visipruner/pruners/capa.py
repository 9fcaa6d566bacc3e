"""Attention contribution: attention weighted by the length of the value it brings, the score of CAPA.

"CAPA: Contribution-Aware Pruning and FFN Approximation for Efficient Large Vision-Language Models", arXiv 2602.00247.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import ScoredPruner
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About
from visipruner.contract.settings import Layer


@dataclass(frozen=True, kw_only=True)
class Capa(ScoredPruner):
    """Score of token j: mean over heads of `A[h, last, j] * ||v[h, j]||`.

    The paper's pruning criterion alone, in one layer: neither its choice of several layers nor its linear
    approximation of FFNs is here. Half of the tokens leave at half the depth unless told otherwise (our defaults).
    """

    name: ClassVar[str] = "capa"
    about: ClassVar[About] = About(
        "CAPA's score: attention times length of the value",
        paper="Jha and Kim, 2026, arXiv 2602.00247",
        acts="before layer 16",
        needs="last row's attention, values",
    )
    reads_last_row_only: ClassVar[bool] = True

    layer: Layer = 16

    def score(self, view: LayerView) -> Tensor:
        attention = view.attention[:, view.visual]
        lengths: Tensor = torch.linalg.vector_norm(view.values[:, view.visual].float(), dim=-1)
        return (attention * lengths.repeat_interleave(len(attention) // len(lengths), 0)).mean(0)
