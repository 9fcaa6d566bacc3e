"""What an experiment changes in a reading, its run through the model's own layers, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from visipruner.analysis.reading import LayerStates, Reading, Rows
from visipruner.analysis.result import Told
from visipruner.engine.attention import QKV, Kernel
from visipruner.engine.calls import seq_dim
from visipruner.engine.host import Host
from visipruner.errors import ConfigError

How = Literal["cut", "zero", "merge", "swap"]


@dataclass(frozen=True, eq=False)
class EdgeEdit:
    """Attention edges from rows `src` to rows `dst`, both `[n]` bool.

    Attributes:
        how: "cut" before the softmax (the rest is renormalised), "zero" after it (the mass is lost), "merge": the
            summed mass goes to row `onto`, an attention sink, or "swap": `src` sees the keys and values that rows `dst`
            have in `other`, a reading of the same rows with another picture.
    """

    src: Tensor
    dst: Tensor
    how: How = "cut"
    onto: int | None = None
    other: Reading | None = None


@dataclass(frozen=True, eq=False)
class Variant:
    """One altered run of the layers.

    Attributes:
        edits: by layer, the edges that are not as in the dense model.
        start: the first layer to run; what lies before is taken from `parent`.
        parent: another variant's place in the same sweep whose states this one continues with at `start`; None for
            the dense reading.
        resting: by layer, `[n]` bool, rows whose states pass that layer unchanged.
    """

    edits: Mapping[int, tuple[EdgeEdit, ...]] = field(default_factory=dict)
    start: int = 0
    parent: int | None = None
    resting: Mapping[int, Tensor] = field(default_factory=dict)


def knockout(
    reading: Reading,
    src: Rows,
    dst: Rows,
    layers: Iterable[int],
    how: How = "cut",
    onto: int | None = None,
    other: Reading | None = None,
) -> Variant:
    """Edges `src` -> `dst` changed in `layers`. `onto` is a row, for "merge" only; `other` a reading, for "swap" only.

    Raises ConfigError for an unknown `how`, layers the model does not have, a merge without a place, or a swap with a
    reading whose visual tokens are not at the same rows.
    """
    chosen = sorted(set(layers))
    if how not in get_args(How):
        raise ConfigError(f"how must be one of {', '.join(map(repr, get_args(How)))}, got {how!r}.")
    if chosen and not 0 <= chosen[0] <= chosen[-1] < len(reading.layers):
        raise ConfigError(f"layers must lie in 0 .. {len(reading.layers) - 1}, got {chosen[0]} .. {chosen[-1]}.")
    if how == "merge" and (onto is None or not 0 <= onto < reading.length):
        raise ConfigError(f"merge needs the row that takes the mass: onto in 0 .. {reading.length - 1}, got {onto}.")
    if how == "swap" and (other is None or not torch.equal(other.visual, reading.visual)):
        raise ConfigError("swap needs other: a reading of the same question and a picture of the same size.")
    edit = EdgeEdit(reading.rows(src), reading.rows(dst), how, onto, other)
    return Variant(dict.fromkeys(chosen, (edit,)), start=chosen[0] if chosen else len(reading.layers))


def combined(*variants: Variant) -> Variant:
    """All edits of several variants at once, from the dense reading."""
    edits: dict[int, tuple[EdgeEdit, ...]] = {}
    resting: dict[int, Tensor] = {}
    for variant in variants:
        for layer, some in variant.edits.items():
            edits[layer] = edits.get(layer, ()) + some
        for layer, rows in variant.resting.items():
            resting[layer] = resting[layer] | rows if layer in resting else rows
    return Variant(edits, min((variant.start for variant in variants), default=0), None, resting)


def rows_to_run(reading: Reading, variants: Sequence[Variant]) -> Tensor:
    """`[r]` long: the rows whose states can differ from the dense reading's in any of `variants`, to the end.

    In a causal model these are all rows from the first that loses or gains an edge; earlier ones need not run again.
    """
    first = reading.last
    edges = {  # each once, however many layers and variants share it
        (id(edit), id(reading.layers[layer].allowed)): (edit, reading.layers[layer].allowed)
        for variant in variants
        for layer, edits in variant.edits.items()
        for edit in edits
    }
    for edit, allowed in edges.values():
        touched = (edit.src & (allowed & edit.dst).any(-1)).nonzero()
        first = min(first, int(touched[0]) if touched.numel() else first)
    for variant in variants:
        for rows in variant.resting.values():
            first = min(first, int(rows.nonzero()[0]))
    masks = {id(states.allowed): states.allowed for states in reading.layers}
    sees_later = any(bool(allowed[:first, first:].any()) for allowed in masks.values())
    return torch.arange(0 if sees_later else first, reading.length)


class Rerun:
    """One sweep: several variants of one reading, layer by layer in one growing batch.

    A variant joins the batch at its first layer, with the states its parent (or the dense reading) has there. It runs
    `rows` (`[r]` long, ascending, as many for each variant), sees those of `context` (`[c]` long) with the dense
    reading's keys and values, and no others.
    """

    def __init__(
        self, host: Host, reading: Reading, variants: Sequence[Variant], rows: Sequence[Tensor], context: Tensor
    ) -> None:
        self._kernel: Kernel = host.kernel
        self._host, self._reading, self._variants = host, reading, variants
        self._rows, self._context = rows, context
        self._is_shared = all(part is rows[0] for part in rows)
        self._columns = [torch.cat([context, part]) for part in rows]
        self._alive: list[int] = []
        self._allowed: dict[tuple[int, int], Tensor] = {}

    def run(self) -> Tensor:
        """`[variants, r, d]`, states leaving the last layer."""
        layers = len(self._reading.layers)
        hidden: Tensor | None = None
        for layer in range(min(variant.start for variant in self._variants), layers):
            hidden = self._join(layer, hidden)
            states = self._reading.layers[layer]
            output = self._host.layers[layer](hidden, **self._arguments(states))
            output = output[0] if isinstance(output, tuple) else output
            hidden = self._rest(layer, hidden, output)
            if states.added is not None:  # by the host between layers: rows that rested get it, too
                hidden = hidden + torch.stack([states.added[self._rows[number]] for number in self._alive])
        hidden = self._join(layers, hidden)
        return hidden[[self._alive.index(number) for number in range(len(self._variants))]]

    def _join(self, layer: int, hidden: Tensor | None) -> Tensor:
        """The batch entering a layer, with the variants that begin there."""
        parts = [] if hidden is None else [hidden]
        dense = self._reading.final if layer == len(self._reading.layers) else self._reading.layers[layer].hidden
        for number, variant in enumerate(self._variants):
            if variant.start != layer:
                continue
            if variant.parent is None:
                parts.append(dense[self._rows[number]][None])
            else:
                assert hidden is not None, "a parent starts below its children"
                parts.append(hidden[self._alive.index(variant.parent)][None])
            self._alive.append(number)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _rest(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        for position, number in enumerate(self._alive):
            resting = self._variants[number].resting.get(layer)
            if resting is not None:
                flags = resting[self._rows[number]]
                after[position, flags] = before[position, flags]
        return after

    def _arguments(self, states: LayerStates) -> dict[str, Any]:
        per_row = {name: self._gather(given, seq_dim(name) or -2) for name, given in states.per_row.items()}
        return {**states.arguments, **per_row, "attention_mask": None}

    def _gather(self, given: Any, dim: int) -> Any:
        """A per-row argument for the rows that run: one for all variants where they share rows, else one each."""
        if not isinstance(given, Tensor):
            return tuple(self._gather(part, dim) for part in given)
        if self._is_shared:
            return given.index_select(dim, self._rows[0].to(given.device))
        parts = [given.index_select(dim, self._rows[number].to(given.device)) for number in self._alive]
        return torch.cat(parts, dim=dim - 1)  # the batch dimension lies before the sequence dimension

    # ---- attention ------------------------------------------------------------------------------------------------

    def attend(self, layer: int, module: nn.Module, qkv: QKV, kwargs: Any) -> tuple[Tensor, None]:
        """The layer's attention for every variant in play; q is `[b, heads, r, head_dim]`."""
        q, k, v = qkv
        states = self._reading.layers[layer]
        if self._context.numel():
            k = torch.cat([states.keys[:, self._context].expand(len(k), -1, -1, -1), k], dim=-2)
            v = torch.cat([states.values[:, self._context].expand(len(v), -1, -1, -1), v], dim=-2)
        edits = [self._variants[number].edits.get(layer, ()) for number in self._alive]
        allowed = torch.stack(
            [self._open(layer, number, some) for number, some in zip(self._alive, edits, strict=True)]
        )
        output = self._run_kernel(module, (q, k, v), allowed, kwargs)
        for position, (number, some) in enumerate(zip(self._alive, edits, strict=True)):
            for edit in some:
                if edit.how != "cut":
                    one = slice(position, position + 1)
                    other = edit.other.layers[layer] if edit.other else None
                    self._change_seen(
                        output[one], number, edit, other, module, (q[one], k[one], v[one]), allowed[one], kwargs
                    )
        return output, None

    def _open(self, layer: int, number: int, edits: tuple[EdgeEdit, ...]) -> Tensor:
        """`[r, columns]` bool: a variant's edges before the softmax."""
        rows, columns = self._rows[number], self._columns[number]
        base = self._reading.layers[layer].allowed
        key = (id(base), 0 if self._is_shared else number)
        if key not in self._allowed:
            self._allowed[key] = base[rows][:, columns]
        allowed = self._allowed[key]
        for edit in edits:
            if edit.how == "cut":
                allowed = allowed & ~(edit.src[rows, None] & edit.dst[columns])
        return allowed

    def _change_seen(
        self,
        output: Tensor,
        number: int,
        edit: EdgeEdit,
        other: LayerStates | None,
        module: nn.Module,
        qkv: QKV,
        allowed: Tensor,
        kwargs: Any,
    ) -> None:
        """Rows `src` again, with the values behind the edges zeroed or the sink's, or with `other`'s keys and values.

        Scaling a weight after the softmax is the same as scaling the value it multiplies; no map is needed.
        """
        q, k, v = qkv
        columns = self._columns[number]
        where = edit.dst[columns].nonzero().flatten().to(v.device)
        sources = edit.src[self._rows[number]].nonzero().flatten().to(v.device)
        if not where.numel() or not sources.numel():
            return
        if other is not None:
            rows = columns[where.to(columns.device)]
            k = k.index_copy(-2, where, other.keys[None, :, rows])
            v = v.index_copy(-2, where, other.values[None, :, rows])
        elif edit.onto is not None and edit.how == "merge":
            sink = columns.eq(edit.onto).nonzero().flatten().to(v.device)
            v = v.index_copy(-2, where, v.index_select(-2, sink).expand(-1, -1, len(where), -1))
        else:
            v = v.index_fill(-2, where, 0)
        part = self._run_kernel(module, (q[:, :, sources], k, v), allowed[:, sources.cpu()], kwargs)
        output.index_copy_(1, sources, part)

    def _run_kernel(self, module: nn.Module, qkv: QKV, allowed: Tensor, kwargs: Any) -> Tensor:
        q = qkv[0]
        allowed = allowed.to(q.device)
        blind = ~allowed.any(-1)
        mask = allowed[:, None]
        if self._host.is_eager:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        output, _ = self._kernel(module, *qkv, mask, **{**kwargs, "is_causal": False})
        return output.masked_fill(blind[:, :, None, None], 0)


ROWS_AT_ONCE = 256  # 150 MB of logits for a vocabulary of 150,000


@dataclass(frozen=True)
class Outcome(Told):
    """One variant's effect on the answer.

    Attributes:
        kl: KL(dense || variant) in nats, mean over the dense answer's tokens, each given the dense ones before it.
        logprob: log-probability of the dense answer, in nats; dense_logprob: the same without the change.
        agrees: greedy decoding would give the dense answer, token for token.
        right: greedy decoding would give the right answer: the dense one where that is right, else the known one,
            token for token. None where no right answer is known.
    """

    kl: float
    logprob: float
    dense_logprob: float
    agrees: bool
    right: bool | None


def outcomes(
    reading: Reading, final: Tensor, rows: Sequence[Tensor], unembed: Callable[[Tensor], Tensor]
) -> list[Outcome]:
    """Outcomes of states `final`, `[variants, r, d]`, of the rows `rows` (per variant `[r]`)."""
    answer, right = reading.answer, reading.right
    told_apart = right is not None and right is not answer
    dense = reading.logprobs
    picked = torch.arange(len(answer.tokens))
    wanted = [answer.rows, right.rows] if right is not None and told_apart else [answer.rows]
    places = [[torch.searchsorted(present, part) for part in wanted] for present in rows]  # among ascending rows
    speaking = [states[torch.cat(found)] for states, found in zip(final, places, strict=True)]
    result = []
    # The head is as large as many layers: reading it once for many rows is what makes a sweep fast.
    for first in range(0, len(speaking), at_once := max(1, ROWS_AT_ONCE // len(speaking[0]))):
        for logits in unembed(torch.stack(speaking[first : first + at_once])):
            logprobs = logits[: len(answer.tokens)].log_softmax(-1)
            kl = (dense.exp() * (dense - logprobs)).sum(-1).mean()
            agrees = bool((logprobs.argmax(-1) == answer.tokens).all())
            is_right: bool | None = None
            if right is not None:
                said = logits[len(answer.tokens) :].argmax(-1)
                is_right = bool((said == right.tokens).all()) if told_apart else agrees
            logprob, dense_logprob = (float(told[picked, answer.tokens].sum()) for told in (logprobs, dense))
            result.append(Outcome(max(0.0, float(kl)), logprob, dense_logprob, agrees, is_right))
    return result
