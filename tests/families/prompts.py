"""Prompts of text, images and videos for tiny models, piece by piece, so that a batch and its examples alone agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PAD, BOS, EOS = 0, 1, 2
FIRST_WORD, LAST_WORD = 3, 79
ROW, BREAK, END, START, VIDEO, IMAGE = 93, 94, 95, 96, 97, 98
VOCAB = 99


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt.

    Attributes:
        ids: its tokens, placeholders included. types: the family's token types of them.
        tensors: what the processor would hand over beside them; joined over pieces along the first dimension.
    """

    ids: list[int]
    types: list[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def words(count: int, generator: torch.Generator) -> Piece:
    return Piece(torch.randint(FIRST_WORD, LAST_WORD, (count,), generator=generator).tolist(), [0] * count)


Prompt = list[Piece]
Join = Callable[[Sequence[Prompt]], dict[str, Tensor]]


def join_first_dimension(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Tensors of all pieces, one after another; smaller ones padded with zeros."""
    pieces = [piece.tensors for prompt in prompts for piece in prompt if piece.tensors]
    names = dict.fromkeys(name for tensors in pieces for name in tensors)
    return {name: _stack([tensors[name] for tensors in pieces if name in tensors]) for name in names}


def _stack(parts: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [(0, want - have) for want, have in zip(shape, part.shape[1:], strict=True)]
        padded.append(torch.nn.functional.pad(part, [side for pair in reversed(missing) for side in pair]))
    return torch.cat(padded)


def join_per_prompt(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """`[prompts, most images, ...]`, prompts with fewer images filled up with zeros (Idefics3)."""
    crops = [[tensor for piece in prompt for tensor in piece.tensors.values()] for prompt in prompts]
    most = max((sum(part.shape[0] for part in parts) for parts in crops), default=0)
    if most == 0:
        return {}
    empty = next(part for parts in crops for part in parts)[:0]
    rows = [torch.cat([empty, *parts]) for parts in crops]
    pads = [torch.cat([row, row.new_zeros(most - row.shape[0], *row.shape[1:])]) for row in rows]
    return {"pixel_values": torch.stack(pads)}


def collate(prompts: Sequence[Prompt], side: str, types: str | None, join: Join) -> dict[str, Tensor]:
    """The model's inputs, padded on `side`."""
    ids = [[token for piece in prompt for token in piece.ids] for prompt in prompts]
    kinds = [[kind for piece in prompt for kind in piece.types] for prompt in prompts]
    longest = max(map(len, ids))

    def padded(rows: list[list[int]]) -> Tensor:
        pads = [[0] * (longest - len(row)) for row in rows]
        return torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])

    inputs = {"input_ids": padded(ids), "attention_mask": padded([[1] * len(row) for row in ids])}
    if types is not None:
        inputs[types] = padded(kinds)
    return {**inputs, **join(prompts)}


def extended(inputs: dict[str, Any], tokens: Tensor, types: str | None, later_type: int) -> dict[str, Any]:
    """The same prompts with `tokens`, `[batch, n]`, after them."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], tokens], 1)
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(tokens)], 1)
    if types is not None:
        longer[types] = torch.cat([inputs[types], torch.full_like(tokens, later_type)], 1)
    return longer
