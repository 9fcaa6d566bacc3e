"""VidCom2: frames that stand out keep more, and each keeps what stands out in the video and in the frame.

"Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models", EMNLP 2025,
arXiv 2505.14454.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from visipruner.contract.budget import Budgeted, keeps_all, parts_of
from visipruner.contract.choosing import top
from visipruner.contract.entry_view import EntryView
from visipruner.contract.frames import videos
from visipruner.contract.pruner import About, Positions
from visipruner.contract.settings import Fraction, Number

TEMPERATURE = 0.01
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class VidCom2(Budgeted):
    """Per video: of the half of the embeddings' channels that vary least, normalised, g = sum over a in 2^-3 .. 2 of
    exp(-d^2 / 2a), d the distance to a mean: g_v to the video's, g_f to the frame's. A frame keeps the share
    r (1 + p - mean of p) of its tokens, p the softmax over frames of (mean of -g_v) / 0.01, rounded and at least one of
    them: those with the least g_v + g_f.

    This is the released code's; the paper has cosines where it has kernels, and all channels. r is `keep_ratio`, or
    `keep_tokens` of all the prompt's, which the shares meet roughly. A picture is a video of one frame here; there
    it stays whole. With scope=image every frame keeps r.

    Attributes:
        frame_tokens: as in `EVS`.
    """

    name: ClassVar[str] = "vidcom2"
    about: ClassVar[About] = About(
        "VidCom2: distinct frames keep more, and of each what is distinct",
        paper="Liu et al., EMNLP 2025, arXiv 2505.14454",
        acts="before the language model",
        needs="visual embeddings",
    )
    published_positions: ClassVar[Positions] = "compact"

    keep_ratio: Fraction = 0.25
    frame_tokens: Number | None = None

    def observes_entry(self, layer: int) -> bool:
        return layer == 0

    def select_entry(self, layer: int, view: EntryView) -> Tensor | None:
        parts = parts_of(view, self.scope)
        if keeps_all(parts, [self.budget(len(part)) for part in parts]):
            return None
        ratio = self.keep_ratio if self.keep_tokens is None else min(1.0, self.keep_tokens / len(view.tokens))
        stays = torch.ones(len(view.tokens), dtype=torch.bool, device=view.tokens.device)
        for frames in videos(view, self.frame_tokens):
            is_present = frames >= 0
            to_video, to_frame = likeness(view.embeddings[frames.clamp(min=0)].float(), is_present)
            share = shares_of(to_video, is_present) if self.scope == "prompt" else torch.ones(len(frames))
            for frame, weight in zip(range(len(frames)), (ratio * share).clamp(max=1).tolist(), strict=True):
                places = frames[frame][is_present[frame]]
                count = max(1 if ratio else 0, round(weight * len(places)))
                ordinary = (to_video + to_frame)[frame][is_present[frame]]
                stays[places] = False
                stays[places[top(-ordinary, count)]] = True
        return stays.nonzero().flatten()


def likeness(states: Tensor, is_present: Tensor) -> tuple[Tensor, Tensor]:
    """`[frames, n]` each: how like the video's mean, and its frame's, every token is; see `VidCom2`. `states`:
    `[frames, n, d]`; those not in `is_present` `[frames, n]` count nowhere."""
    varies = states[is_present].var(0, unbiased=False)
    unit = functional.normalize(states[..., varies.topk(len(varies) // 2, largest=False).indices], dim=-1)
    weight = is_present[..., None].float()
    video = (unit * weight).sum((0, 1), keepdim=True) / weight.sum().clamp(min=1)
    frame = (unit * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1)
    return kernels(unit, video), kernels(unit, frame)


def kernels(states: Tensor, mean: Tensor) -> Tensor:
    distance = (states - mean).square().sum(-1)
    return torch.stack([(-distance / (2 * scale)).exp() for scale in SCALES]).sum(0)


def shares_of(to_video: Tensor, is_present: Tensor) -> Tensor:
    """`[frames]`: 1 + p - mean of p. A frame without tokens takes part in nothing; what is not a number is 1."""
    held = is_present.sum(1)
    p = (-(to_video * is_present).sum(1) / held.clamp(min=1)).masked_fill(held == 0, float("-inf")) / TEMPERATURE
    p = p.softmax(0)
    return (1 + p - p.sum() / (held > 0).sum().clamp(min=1)).nan_to_num(1.0)
