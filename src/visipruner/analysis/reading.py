"""One prompt as the dense model read it: what passes through its layers, written down; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from visipruner.contract.layout import TokenLayout
from visipruner.engine.calls import CACHE_NAMES, seq_dim
from visipruner.engine.masks import HostMask
from visipruner.errors import ConfigError

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
                raise ConfigError(f"There is no group of rows called {which!r}; groups are {', '.join(groups)}.")
            return groups[which]
        if isinstance(which, Tensor) and which.dtype == torch.bool:
            if which.shape != flags.shape:
                raise ConfigError(f"A mask of rows must have shape [{self.length}], got {list(which.shape)}.")
            return which
        numbers = torch.as_tensor(which if isinstance(which, Tensor) else list(which), dtype=torch.long)
        low, high = (int(numbers.min()), int(numbers.max())) if numbers.numel() else (0, 0)
        if low < 0 or high >= self.length:
            raise ConfigError(f"Rows must lie in 0 .. {self.length - 1}, got {low} .. {high}.")
        flags[numbers] = True
        return flags


# Arguments that a layer is not given again: the cache is replaced by recorded keys and the mask by its meaning.
_DROPPED = ("attention_mask", *CACHE_NAMES, "past_key_value", "use_cache", "cache_position")


@dataclass
class LayerRecord:
    """One layer over one or several forwards ("segments"), each continuing the one before.

    Attributes, with n rows in all: hidden `[n, d]` entering the layer; output `[n, d]` leaving it; queries
    `[heads, n, head_dim]`, keys and values `[kv_heads, n, head_dim]` after RoPE; arguments: what else the layer was
    given in its first forward; per_row: its per-row arguments, concatenated; masks: one `HostMask` a segment.
    """

    hidden: list[Tensor] = field(default_factory=list)
    output: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    per_row: dict[str, list[Any]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    attention_arguments: dict[str, Any] = field(default_factory=dict)

    def enter(self, hidden: Tensor, kwargs: Mapping[str, Any]) -> None:
        """Notes the layer's input and arguments of one forward."""
        first = not self.hidden
        self.hidden.append(hidden[0])
        for name, given in kwargs.items():
            if name in _DROPPED or name == "hidden_states":
                continue
            if given is not None and seq_dim(name) is not None:
                self.per_row.setdefault(name, []).append(given)
            elif first:
                self.arguments[name] = given

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kwargs: Mapping[str, Any]) -> None:
        """Notes the new rows' queries, keys and values; older keys are those of earlier segments."""
        new = q.shape[-2]
        self.queries.append(q[0])
        self.keys.append(k[0, :, -new:])
        self.values.append(v[0, :, -new:])
        self.masks.append(mask)
        self.attention_arguments = dict(kwargs)

    def states(self, allowed: Tensor, per_row: dict[str, Any]) -> LayerStates:
        """All segments as one sequence."""
        hidden, queries, keys, values = (
            torch.cat(parts, dim=-2) for parts in (self.hidden, self.queries, self.keys, self.values)
        )
        scaling, softcap = (self.attention_arguments.get(name) for name in ("scaling", "softcap"))
        scaling = queries.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return LayerStates(
            hidden, queries, keys, values, allowed, scaling, softcap, arguments=self.arguments, per_row=per_row
        )


class Recording:
    """All layers over a prompt and the forwards that continue it, up to two different ways ("chains").

    Attributes:
        layers: one record a layer. lengths: rows of each segment.
        chain: per segment, which continuation it belongs to; the prompt is segment 0 and belongs to both.
    """

    def __init__(self, num_layers: int) -> None:
        self.layers = [LayerRecord() for _ in range(num_layers)]
        self.lengths: list[int] = []
        self.chain: list[int] = []

    def begin_segment(self, length: int) -> None:
        """A forward of `length` rows begins."""
        self.lengths.append(length)
        self.chain.append(0)

    def add_chain(self, other: Recording) -> None:
        """Appends what another recording of the same prompt has after the prompt."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for name in ("hidden", "output", "queries", "keys", "values", "masks"):
                getattr(mine, name).extend(getattr(theirs, name)[1:])
            for name, given in theirs.per_row.items():
                mine.per_row[name].extend(given[1:])
        self.lengths += other.lengths[1:]
        self.chain += [1] * (len(other.lengths) - 1)

    def states(self) -> tuple[list[LayerStates], Tensor]:
        """Each layer's segments as one sequence of n rows, and what leaves the last layer, `[n, d]`."""
        layers: list[LayerStates] = []
        shared: dict[tuple[int, ...], Any] = {}
        for record in self.layers:
            key = tuple(map(id, record.masks))
            if key not in shared:
                shared[key] = self._allowed(record.masks)
            per_row = {}
            for name, given in record.per_row.items():
                rows_key = tuple(map(id, given))
                if rows_key not in shared:
                    shared[rows_key] = _join_rows(given, seq_dim(name) or -2)
                per_row[name] = shared[rows_key]
            layers.append(record.states(shared[key], per_row))
        outputs = [torch.cat(record.output) for record in self.layers]
        for layer, (states, output) in enumerate(zip(layers[1:], outputs[:-1], strict=True)):
            if not torch.equal(states.hidden, output):  # the host itself adds features between layers
                layers[layer] = replace(layers[layer], added=states.hidden - output)
        return layers, outputs[-1]

    def _allowed(self, masks: list[Tensor | None]) -> Tensor:
        """`[n, n]` bool: which row may see which. A chain does not see the other one."""
        total = sum(self.lengths)
        allowed = torch.zeros(total, total, dtype=torch.bool)
        past = {chain: torch.arange(0) for chain in (0, 1)}
        first = 0
        for mask, length, chain in zip(masks, self.lengths, self.chain, strict=True):
            rows = torch.arange(first, first + length)
            before = past[chain]
            host = HostMask(None if mask is None else mask.cpu(), len(before), length)
            seen = host.allowed(0, torch.arange(length), torch.arange(len(before) + length))
            allowed[rows[:, None], torch.cat([before, rows])[None]] = seen
            past[chain] = torch.cat([before, rows])
            if first == 0:
                past[1] = rows
            first += length
        return allowed


def _join_rows(given: list[Any], dim: int) -> Any:
    if isinstance(given[0], Tensor):
        return torch.cat(given, dim=dim)
    return tuple(torch.cat(parts, dim=dim) for parts in zip(*given, strict=True))
