"""Prompts to measure: random embeddings of any length for a shape, chat prompts about pictures for a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visipruner.chat import chat_inputs
from visipruner.engine.attach import attach
from visipruner.pruners.none import NoPruning


@dataclass(frozen=True, eq=False)
class Prompt:
    """What `generate` takes, and what must be known to attach.

    Attributes:
        inputs: keyword arguments of the model. visual_mask: `[batch, seq]` bool for `attach`, or None where the model
            finds its visual rows itself.
        lengths: rows per example, padding excluded. visual: visual rows per example. width: rows with padding.
    """

    inputs: dict[str, Any]
    visual_mask: Tensor | None
    lengths: list[int]
    visual: list[int]

    @property
    def width(self) -> int:
        return max(self.lengths)


@dataclass(frozen=True)
class Rows:
    """How many rows one random prompt has: text, then visual tokens, then text."""

    before: int = 35
    visual: int = 576
    after: int = 13

    @property
    def total(self) -> int:
        return self.before + self.visual + self.after

    def to_dict(self) -> dict[str, int]:
        """As measured points name them."""
        return {"text_before": self.before, "visual": self.visual, "text_after": self.after}


def embedded(model: Any, batch: Sequence[Rows], seed: int = 0) -> Prompt:
    """Random embeddings, padded on the left to the longest. The vision tower does not run."""
    width = model.config.get_text_config().hidden_size
    longest = max(rows.total for rows in batch)
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(len(batch), longest, width, generator=generator) * 0.02
    real = torch.zeros(len(batch), longest, dtype=torch.long)
    visual = torch.zeros(len(batch), longest, dtype=torch.bool)
    for example, rows in enumerate(batch):
        start = longest - rows.total
        real[example, start:] = 1
        visual[example, start + rows.before : longest - rows.after] = True
    inputs = {"inputs_embeds": embeds.to(model.device, model.dtype), "attention_mask": real.to(model.device)}
    return Prompt(inputs, visual.to(model.device), [r.total for r in batch], [r.visual for r in batch])


def about_picture(model: Any, processor: Any, picture: Image.Image, question: str) -> Prompt:
    """A chat prompt as `run` makes it; the model's forward includes the vision tower."""
    inputs = dict(chat_inputs(model, processor, picture, question))
    with attach(model, NoPruning()) as handle, torch.inference_mode():
        model(**inputs, logits_to_keep=1)
        example = handle.trace[0]
    return Prompt(inputs, None, [example.prompt_length], [example.num_visual])


def asked(model: Any, batch: Sequence[Rows], seed: int = 0) -> list[Prompt]:
    """Single prompts that begin with the same text and image and end with questions of their own."""
    begun = embedded(model, [batch[0]], seed).inputs["inputs_embeds"][:, : batch[0].before + batch[0].visual]
    prompts = []
    for number, rows in enumerate(batch):
        own = embedded(model, [rows], seed + 1 + number)
        own.inputs["inputs_embeds"][:, : begun.shape[1]] = begun
        prompts.append(own)
    return prompts


def text_only(model: Any, length: int, batch: int = 1, seed: int = 0) -> Prompt:
    """Random token ids without an image."""
    config = model.config.get_text_config()
    ids = torch.randint(3, min(config.vocab_size, 400), (batch, length), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}
    return Prompt(inputs, None, [length] * batch, [0] * batch)
