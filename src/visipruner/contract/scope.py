"""What a budget counts: all visual tokens of a prompt together, or those of each image by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from visipruner.contract.choosing import top
from visipruner.contract.entry_view import EntryView, Merge
from visipruner.contract.layer_view import LayerView

Scope = Literal["prompt", "image"]
Choose = Callable[[EntryView, int], Tensor | Merge]


def parts_of(view: EntryView | LayerView, scope: Scope) -> list[Tensor]:
    """Positions among the visual tokens present that share a budget, long and ascending: those of each image (none,
    where all of its tokens left), or all in one."""
    if scope == "image":
        return view.positions_per_image()
    return [torch.arange(view.tokens.numel(), device=view.tokens.device)]


def best(scores: Tensor, parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor | None:
    """Ascending positions of the best of each part by `scores` `[n_v]`, or None where all of them stay."""
    if all(count >= len(part) for part, count in zip(parts, counts, strict=True)):
        return None
    kept = [part[top(scores[part], count)] for part, count in zip(parts, counts, strict=True)]
    return torch.cat(kept).sort().values


def chosen(view: EntryView, parts: Sequence[Tensor], counts: Sequence[int], choose: Choose) -> Tensor | Merge | None:
    """What `choose` answers for each part as if its tokens were the only visual ones, or None where all of them stay.

    `choose(view, count)` is not asked for parts that stay, or leave, as a whole.
    """
    if all(count >= len(part) for part, count in zip(parts, counts, strict=True)):
        return None
    if len(parts) == 1 and counts[0] > 0:
        return choose(view, counts[0])
    kept, states, has_merged = [], [], False
    for part, count in zip(parts, counts, strict=True):
        positions, held = part[:count], view.embeddings[part[:count]]
        if 0 < count < len(part):
            alone = view.narrowed(part)
            answer = choose(alone, count)
            view.add_work_of(alone)
            where = answer.kept if isinstance(answer, Merge) else answer
            positions, held = part[where], answer.states if isinstance(answer, Merge) else view.embeddings[part[where]]
            has_merged |= isinstance(answer, Merge)
        kept.append(positions)
        states.append(held)
    everyone, order = torch.cat(kept).sort()
    return Merge(everyone, torch.cat(states)[order]) if has_merged else everyone
