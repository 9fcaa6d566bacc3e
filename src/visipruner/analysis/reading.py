"""A prompt and its answer as the dense model read them: the ground every experiment stands on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visipruner.contract.layout import TokenLayout
from visipruner.errors import ConfigError

GROUPS = ("visual", "text", "system", "question", "last", "answer", "all")
Rows = str | Tensor | Iterable[int]


@dataclass(frozen=True, eq=False)
class LayerStates:
    """What one layer saw, n rows. All float tensors are in the model's dtype.

    Attributes:
        hidden: `[n, d]` entering the layer. queries: `[heads, n, head_dim]`; keys, values: `[kv_heads, n, head_dim]`,
            after RoPE. allowed: `[n, n]` bool, which row (first) may see which.
        scaling: factor of the attention logits. softcap: their cap, or None.
        added: `[n, d]` added to the layer's output by the model itself (DeepStack), or None.
        arguments: the layer's other keyword arguments. per_row: those with an entry per row.
    """

    hidden: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    allowed: Tensor
    scaling: float
    softcap: float | None = None
    added: Tensor | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    per_row: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Continuation:
    """Tokens that may follow the prompt, and the rows whose predictions speak about them.

    Attributes:
        tokens: `[t]` long. rows: `[t]` long, the row that predicts each token. text: what they say.
    """

    tokens: Tensor
    rows: Tensor
    text: str


@dataclass(frozen=True, eq=False)
class Reading:
    """One prompt with its answer, read densely.

    Rows are numbered 0 .. n-1: the prompt (N rows), then the answer as it was generated, then the known right answer
    where that is another one. The two answers do not see each other.

    Attributes:
        layers: states of every layer. final: `[n, d]` leaving the last layer.
        layout: which prompt rows are visual, and their grids. prompt_length: N.
        answer: the dense model's greedy answer. right: the right answer, or None where it is not known.
        is_right: whether the dense answer is right, None where that is not known.
        logprobs: `[t, vocabulary]` float32, dense log-probabilities at `answer.rows`.
    """

    layers: list[LayerStates]
    final: Tensor
    layout: TokenLayout
    prompt_length: int
    answer: Continuation
    right: Continuation | None
    is_right: bool | None
    logprobs: Tensor

    @property
    def length(self) -> int:
        """Rows in all."""
        return self.final.shape[0]

    @property
    def visual(self) -> Tensor:
        """`[n_v]` long, rows of the visual tokens."""
        return self.layout.visual

    @property
    def last(self) -> int:
        """The last prompt row, which predicts the first answer token."""
        return self.prompt_length - 1

    def rows(self, which: Rows) -> Tensor:
        """`[n]` bool: the rows of a named group, of a bool mask, or of row numbers.

        Groups: "visual"; "system", the text before the first visual row; "question", the prompt's text after it;
        "last", the last prompt row; "answer", rows after the prompt; "text", all that is not visual; "all".

        Raises ConfigError for another name, or rows that do not exist.
        """
        flags = torch.zeros(self.length, dtype=torch.bool)
        if isinstance(which, str):
            first = int(self.visual[0])
            text = torch.ones_like(flags)
            text[self.visual] = False
            number = torch.arange(self.length)
            groups = {
                "visual": ~text,
                "text": text,
                "system": text & (number < first),
                "question": text & (number > first) & (number < self.prompt_length),
                "last": number == self.last,
                "answer": number >= self.prompt_length,
                "all": torch.ones_like(flags),
            }
            if which not in groups:
                raise ConfigError(f"There is no group of rows called {which!r}; groups are {', '.join(GROUPS)}.")
            return groups[which]
        if isinstance(which, Tensor) and which.dtype == torch.bool:
            if which.shape != flags.shape:
                raise ConfigError(f"A mask of rows must have shape [{self.length}], got {list(which.shape)}.")
            return which
        numbers = torch.as_tensor(which if isinstance(which, Tensor) else list(which), dtype=torch.long)
        if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= self.length):
            raise ConfigError(
                f"Rows must lie in 0 .. {self.length - 1}, got {int(numbers.min())} .. {int(numbers.max())}."
            )
        flags[numbers] = True
        return flags
