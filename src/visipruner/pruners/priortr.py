"""PriorTR: what the question adds to the attention that the image gets without it.

"Accelerating Multimodal Large Language Models with Prior-Corrected Token Reduction", ECCV 2026, arXiv 2606.24156.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from visipruner.contract.budget import Scope, ScoredPruner, parts_of
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About
from visipruner.contract.settings import Fraction, Layer

TINY = 1e-10  # as in the released code


@dataclass(frozen=True, kw_only=True)
class PriorTR(ScoredPruner):
    """Score: P log(P / Q). P is the attention of the question's rows to the image, mean over heads and rows, Q that of
    the row right after the image, which cannot see the question; both are normalised over the image.

    As in the released code, which also takes dropped tokens out of the cache of the layers before: there the first
    token is the same, later ones may differ. Defaults: its LLaVA-1.5, 192 of 576 tokens from layer 3 on.

    Attributes:
        rows: of the question: "question" is every row after the image, "last" the last one (the released code's choice
            for LLaVA-NeXT). Of several images, rows after the last.
    """

    name: ClassVar[str] = "priortr"
    about: ClassVar[About] = About(
        "PriorTR: attention of the question against that of a row before it",
        paper="Chen et al., ECCV 2026, arXiv 2606.24156",
        acts="before layer 3",
        needs="attention of the rows after the image",
    )

    layer: Layer = 3
    keep_ratio: Fraction = 1 / 3
    rows: Literal["question", "last"] = "question"

    def score(self, view: LayerView) -> Tensor:
        return beyond_prior(view, self.rows, self.scope)


def beyond_prior(view: LayerView, rows: Literal["question", "last"], scope: Scope) -> Tensor:
    """`[n_v]`: `PriorTR`'s score."""
    after = view.rows_after_images
    judges = torch.cat([after[:1], after if rows == "question" else after[-1:]])
    weights = torch.cat([part[..., view.visual].mean(0) for part in view.attention_of(judges)])
    scores = torch.empty_like(weights[0])
    for part in parts_of(view, scope):
        q, p = (given / (given.sum() + TINY) for given in (weights[0, part], weights[1:, part].mean(0)))
        scores[part] = p * ((p + TINY) / (q + TINY)).log()
    return scores
