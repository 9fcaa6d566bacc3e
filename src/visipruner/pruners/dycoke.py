"""DyCoke's first step: of every four frames one is whole, the others keep what differs.

"DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025, arXiv 2411.15024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.choosing import top
from visipruner.contract.entry_view import EntryView
from visipruner.contract.frames import videos
from visipruner.contract.pruner import About, DroppingPruner, Positions
from visipruner.contract.settings import Fraction, Number

BACK = (0, 1, 2, 1)  # how many frames back each of a window of four is compared with; 0: it stays whole


@dataclass(frozen=True, kw_only=True)
class DyCoke(DroppingPruner):
    """Temporal merging. In windows of four frames the second and third are compared with the first, the fourth with the
    third, place by place: `merge_ratio` of their tokens leave, those with the largest cosine of embeddings.

    The paper's second step, which chooses among cached keys again and again while decoding, is not here. The released
    code, too, drops what the paper calls merged; it also leaves the third frame of a video's last window whole, and
    loses the last frame of an odd number altogether, which we do not. Pictures stay whole, as first frames.

    Attributes:
        merge_ratio: fraction of a compared frame that leaves; what stays is rounded down. frame_tokens: as in `EVS`.
    """

    name: ClassVar[str] = "dycoke"
    about: ClassVar[About] = About(
        "DyCoke: one whole frame in four, of the others what differs",
        paper="Tao et al., CVPR 2025, arXiv 2411.15024",
        acts="before the language model",
        needs="visual embeddings",
    )
    published_positions: ClassVar[Positions] = "compact"

    merge_ratio: Fraction = 0.7
    frame_tokens: Number | None = None

    def with_share(self, share: float, model: Any, prompts: Sequence[Mapping[str, Any]]) -> Self:
        """Of four frames one stays whole, so a quarter is the least."""
        return replace(self, merge_ratio=min(1.0, (1 - share) * 4 / 3))

    def observes_entry(self, layer: int) -> bool:
        return layer == 0

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        stays = torch.ones(len(view.tokens), dtype=torch.bool, device=view.tokens.device)
        for frames in videos(view, self.frame_tokens):
            states = view.embeddings[frames.clamp(min=0)].float()
            for number, places in enumerate(frames):
                back = BACK[number % 4]
                is_there = (places >= 0) & (frames[number - back] >= 0)
                if back and self.merge_ratio:
                    likeness = functional.cosine_similarity(states[number], states[number - back], dim=-1)[is_there]
                    left = places[is_there]
                    stays[left] = False
                    stays[left[top(-likeness, int((1 - self.merge_ratio) * len(left)))]] = True
        return stays.nonzero().flatten()
