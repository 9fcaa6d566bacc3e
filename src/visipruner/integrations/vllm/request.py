"""What is remembered of one request for as long as it lives. Nothing here knows vLLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visipruner.contract.layout import ImageTokens, TokenLayout, VisualRows, layouts
from visipruner.contract.pruner import PromptRun


@dataclass(frozen=True)
class Picture:
    """One image of a prompt: which rows hold it (first and last of each unbroken run), and its grid if it has one."""

    runs: list[tuple[int, int]]
    grid: tuple[int, int] | None

    @property
    def count(self) -> int:
        return sum(last - first + 1 for first, last in self.runs)


@dataclass(eq=False)
class Request:
    """One request.

    Attributes:
        layout: which of the prompt's rows are visual. prompt_length: rows of the prompt.
        gone: `[layers]`, how many rows of this request each layer's cache does not hold. is_packed: whether any.
        run: the method at work, while the prompt is read. tokens: `[k]` long, numbers of the visual tokens present.
    """

    layout: TokenLayout
    prompt_length: int
    gone: NDArray[np.int32]
    run: PromptRun | None = None
    is_packed: bool = False
    tokens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @classmethod
    def of(cls, pictures: list[Picture], prompt_length: int, num_layers: int, device: torch.device) -> Request:
        """A request whose prompt has not been read."""
        mask = torch.zeros(1, prompt_length, dtype=torch.bool)
        for picture in pictures:
            for first, last in picture.runs:
                mask[:, first : last + 1] = True
        rows = VisualRows(mask, [ImageTokens(picture.count, picture.grid) for picture in pictures])
        layout = layouts(rows, torch.ones_like(mask))[0]
        return cls(layout.to(device), prompt_length, np.zeros(num_layers, dtype=np.int32))

    @cached_property
    def is_visual(self) -> bool:
        return len(self.layout.visual) > 0

    def read(self, run: PromptRun | None) -> None:
        """The whole prompt is about to be read; with None as it is."""
        self.gone[:] = 0
        self.is_packed = False
        self.run = run
        self.tokens = torch.arange(len(self.layout.visual), device=self.layout.visual.device)

    @property
    def is_read(self) -> bool:
        """Whether tokens may still leave in the forward at work."""
        return self.run is not None and len(self.tokens) > 0

    @property
    def rows_present(self) -> int:
        """Rows of the prompt still in play."""
        return self.prompt_length - len(self.layout.visual) + len(self.tokens)

    def columns(self) -> Tensor:
        """`[k]` long: where the visual tokens present are among the prompt's rows in play."""
        visual = self.layout.visual
        left = torch.ones(len(visual), dtype=torch.long, device=visual.device)
        left[self.tokens] = 0
        return (visual - left.cumsum(0))[self.tokens]

    def drop(self, layer: int, kept: Tensor) -> None:
        """From `layer` on only the tokens at the positions `kept` among those present are there."""
        self.gone[layer:] += len(self.tokens) - len(kept)
        self.is_packed = bool(self.gone.any())
        is_first = len(self.tokens) == len(self.layout.visual)
        if self.run is not None and self.run.trigger_layer is None and is_first and len(kept) < len(self.tokens):
            self.run.trigger_layer = layer - 1 if layer else None
        self.tokens = self.tokens[kept]
