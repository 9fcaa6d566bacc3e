"""IVC-Prune: tokens at whose positions rotary embeddings are nearly no turn, or a quarter turn, anchor coordinates.

"IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning", ICLR 2026, arXiv 2602.03060.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import ScoredPruner, best, keeps_all, parts_of
from visipruner.contract.choosing import top, union
from visipruner.contract.entry_view import EntryView
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.contract.settings import Fraction, Layer

PAPER = "Sun et al., ICLR 2026, arXiv 2602.03060"
SKIPPED = 2  # rows after the image that do not ask, as in the released code


@dataclass(frozen=True, kw_only=True)
class IVC(Pruner):
    """The paper's add-on for another method, written before it: `ivc+fastv`. Of each image the `coordinates`, half of
    them with the largest mean of cos(m theta_k) over k, m their position, half with the largest of sin(m theta_k), stay
    whatever the other method says, on top of its budget, until that lets all tokens leave. Alone it drops nothing.

    In models with M-RoPE the released code takes the mean over time, height and width in every frequency; transformers
    shows for each frequency the one axis that it turns by, so there coordinates are others.

    Attributes:
        coordinates: fraction of an image's tokens that are coordinates.
    """

    name: ClassVar[str] = "ivc"
    about: ClassVar[About] = About(
        "IVC: coordinates that another method may not drop, written ivc+fastv",
        paper=PAPER,
        acts="nowhere by itself",
        needs="rotary embeddings",
    )
    reads_rotary: ClassVar[bool] = True

    coordinates: Fraction = 0.1

    def start(self) -> PromptRun:
        return _IVCRun(self)


class _IVCRun(PromptRun):
    def __init__(self, config: IVC) -> None:
        super().__init__()
        self._config = config

    def observes_entry(self, layer: int) -> bool:
        return layer == 0

    def select_entry(self, layer: int, view: EntryView) -> None:
        self.protected = view.tokens[anchors(view, self._config.coordinates)]


@dataclass(frozen=True, kw_only=True)
class IVCPrune(ScoredPruner):
    """The whole method. After the coordinates (see `IVC`) come `seeds`, whose values in the layer before `layer` are
    most like those of the question's rows, and then the tokens most like these and the seeds: mean over kv heads and
    rows of softmax_j(v_t . v_j / sqrt(head_dim)) over the image.

    The question's rows are those from the third after the image on. The released code for LLaVA takes its softmax over
    all rows and has no budget; that for Qwen2.5-VL is followed, which fills up half of the tokens, and has twice as
    many coordinates. It also takes what leaves out of the cache of the layers before, so that words after the first
    may differ.

    Attributes:
        coordinates, seeds: fractions of each image's (with scope=prompt: the prompt's) tokens, within the budget,
            unless that is too small for them and not 0.
    """

    name: ClassVar[str] = "ivc-prune"
    about: ClassVar[About] = About(
        "IVC-Prune: coordinates, and the foreground by likeness of values",
        paper=PAPER,
        acts="before layer 16",
        needs="rotary embeddings, values",
    )
    reads_rotary: ClassVar[bool] = True

    layer: Layer = 16
    coordinates: Fraction = 0.1
    seeds: Fraction = 0.01

    def start(self) -> PromptRun:
        return _IVCPruneRun(self)

    def score(self, view: LayerView) -> Tensor:
        """Infinite for seeds."""
        after = view.rows_after_images
        asking = view.columns[after[SKIPPED:] if len(after) > SKIPPED else after]
        scores = view.values.new_zeros(len(view.tokens), dtype=torch.float32)
        for part in parts_of(view, self.scope):
            values = view.values[:, view.visual[part]].float()
            asked = alike(view.values[:, asking].float(), values)
            seeds = top(asked.mean(0), max(1, round(self.seeds * len(part))))
            scores[part] = torch.cat([asked, alike(values[:, seeds], values)]).mean(0).index_fill(0, seeds, torch.inf)
        return scores


class _IVCPruneRun(PromptRun):
    def __init__(self, config: IVCPrune) -> None:
        super().__init__()
        self._config, self._anchors = config, torch.empty(0, dtype=torch.long)

    def observes_entry(self, layer: int) -> bool:
        return layer == self._config.layer - 1

    def select_entry(self, layer: int, view: EntryView) -> None:
        self._anchors = view.tokens[anchors(view, self._config.coordinates)]

    def observes(self, layer: int) -> bool:
        return self._config.observes(layer)

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        parts = parts_of(view, self._config.scope)
        counts = [self._config.budget(len(part)) for part in parts]
        if keeps_all(parts, counts):
            return None
        is_anchor = torch.isin(view.tokens, self._anchors.to(view.tokens.device))
        scores = self._config.score(view).masked_fill(is_anchor, torch.inf)
        first = [int(scores[part].isposinf().sum()) for part in parts]
        held = [max(count, must) if count else 0 for count, must in zip(counts, first, strict=True)]
        return best(scores, parts, held)


def anchors(view: EntryView, share: float) -> Tensor:
    """Ascending positions of each image's coordinates among the visual tokens present; see `IVC`."""
    turns = [part.float().mean((0, -1)) for part in view.rotary(view.visual)]
    places = view.positions_per_image()
    found = [part[top(turn[part], round(share / 2 * len(part)))] for part in places for turn in turns]
    return union(view.tokens[:0], *found)


def alike(queries: Tensor, values: Tensor) -> Tensor:
    """`[q, n]`: mean over heads of the softmax of `queries` `[kv_heads, q, d]` over `values` `[kv_heads, n, d]`."""
    likeness: Tensor = queries @ values.transpose(1, 2) * float(values.shape[-1]) ** -0.5
    return likeness.softmax(-1).mean(0)
