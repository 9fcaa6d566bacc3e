"""PyramidDrop: stage by stage, the tokens that the last instruction row attends to least leave.

"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", CVPR 2025,
arXiv 2410.17247.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visipruner.contract.budget import Scope, best, check_keep_ratios, keeps_all, parts_of
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About, DroppingPruner, Positions, PromptRun
from visipruner.contract.settings import Fraction, Layer


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(DroppingPruner):
    """Before each of `layers`: score = softmax over all rows of q_last K^T, mean over heads.

    The text is among the rows, so a head counts by how much of its attention the image has. Queries and keys are made
    by the layer about to run (its norm, projections and RoPE, on all rows), as in the released code; that is one
    projection more per stage, counted in the trace. Positions are made anew after every stage, as there. Where a prompt
    is a later turn of a cached dialogue, the rows are those of this turn.

    Attributes:
        layers: tokens leave before these. keep_ratios: fractions of the prompt's visual tokens that stay from each on,
            rounded down. scope: whether those are fractions of all images together or of each (see `Budgeted`).
    """

    name: ClassVar[str] = "pyramiddrop"
    about: ClassVar[About] = About(
        "PyramidDrop: half of the tokens leave at each of three stages",
        paper="Xing et al., CVPR 2025, arXiv 2410.17247",
        acts="before layers 8, 16, 24",
        needs="last row's query, all keys",
    )
    published_positions: ClassVar[Positions] = "compact"

    layers: tuple[Layer, ...] = (8, 16, 24)
    keep_ratios: tuple[Fraction, ...] = (0.5, 0.25, 0.125)
    scope: Scope = "prompt"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_keep_ratios(self.layers, self.keep_ratios)

    def start(self) -> PromptRun:
        return _PyramidRun(self)


class _PyramidRun(PromptRun):
    def __init__(self, config: PyramidDrop) -> None:
        super().__init__()
        self._stages, self._scope = dict(zip(config.layers, config.keep_ratios, strict=True)), config.scope
        self._first: list[int] | None = None

    def observes_entry(self, layer: int) -> bool:
        return layer in self._stages

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        parts = parts_of(view, self._scope)
        self._first = self._first or [len(part) for part in parts]
        counts = [int(first * self._stages[layer]) for first in self._first]
        return None if keeps_all(parts, counts) else best(view.attention_to_all().mean(0)[view.visual], parts, counts)
