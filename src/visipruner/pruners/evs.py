"""EVS: the first frame of a video, and of the others what changed most.

"Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", 2025, arXiv 2510.14624.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import Budgeted, best, parts_of
from visipruner.contract.entry_view import EntryView
from visipruner.contract.frames import videos
from visipruner.contract.pruner import About
from visipruner.contract.settings import Fraction, Number


@dataclass(frozen=True, kw_only=True)
class EVS(Budgeted):
    """All tokens of a video's first frame stay, also beyond the budget, and of the others those with the largest
    1 - cos of their embedding to that of the same place one frame earlier, over all frames of the prompt together.

    Pictures stay whole: a picture is a first frame. As in transformers' Nemotron-H Omni and in vLLM, which round the
    budget down where it is rounded here, and take each video for itself. A token whose place is gone from the frame
    before, which another method took, counts as new. Default: a quarter, of the pruning rates that the paper tries.

    Attributes:
        frame_tokens: tokens of a frame where the model's trace has a whole video as one image, 196 in LLaVA-OneVision
            and 144 in LLaVA-NeXT-Video; else None: images of one grid in a row are frames.
    """

    name: ClassVar[str] = "evs"
    about: ClassVar[About] = About(
        "EVS: a video's first frame, then what changed since the frame before",
        paper="Bagrov et al., 2025, arXiv 2510.14624",
        acts="before the language model",
        needs="visual embeddings",
    )

    keep_ratio: Fraction = 0.25
    frame_tokens: Number | None = None

    def observes_entry(self, layer: int) -> bool:
        return layer == 0

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        change = view.embeddings.new_full((len(view.tokens),), float("inf")).float()
        for frames in videos(view, self.frame_tokens):
            states = view.embeddings[frames.clamp(min=0)].float()
            found = 1 - functional.cosine_similarity(states[1:], states[:-1], dim=-1)
            can_compare = (frames[1:] >= 0) & (frames[:-1] >= 0)
            change[frames[1:][can_compare]] = found[can_compare]
        parts = parts_of(view, self.scope)
        counts = [max(self.budget(len(part)), int(change[part].isposinf().sum())) for part in parts]
        return best(change, parts, counts)
