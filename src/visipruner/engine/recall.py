"""Tokens that come back: what left a prompt is held ready, and may be chosen again while its answer is decoded.

A token that left before layer l has keys and values in the cache of the layers before; the state with which it would
have entered l is kept beside. When it comes back it runs the layers that it missed, once, at its own position: it sees
what it would have seen there of the rows that the layer holds, and the tokens that come back with it. Rows of the
answer see it from then on. It goes on to the first layer that no visual token of the prompt ran.

Keys carry their positions (RoPE), and masks are asked by column, so where among a layer's keys it stands is all one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.accounting.record import ExampleTrace, Recalled
from visipruner.contract.choosing import others
from visipruner.contract.layer_view import LayerView
from visipruner.contract.layout import TokenLayout
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.engine.attention import QKV
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.calls import bound, per_row, scaling_of
from visipruner.engine.deepstack import AddedFeatures
from visipruner.engine.edges import run_kernel
from visipruner.engine.host import Host
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.masks import HostMask, MaskForm, is_open
from visipruner.engine.rows import Rows
from visipruner.engine.run_ahead import arguments_for
from visipruner.errors import UnsupportedModelError

# ---- while the prompt is read ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class LeftRows:
    """What left one prompt, and what it takes to run it later. Lives with the prompt's cache, in its last layer.

    Attributes:
        layout, run: of the only example. past, seq: logical rows before the prompt's forward, and rows of it.
        plain: by layer whether its attention edges are the plain model's.
        states: by layer l the tokens that left before it, `[k]` long and ascending, and what would have entered it,
            `[k, d]`.
        placed: by layer the host's arguments that have one entry per row. masks: by layer what rows may see.
        end: the first layer that no visual token ran any more.
        trace: where it is written down.
    """

    layout: TokenLayout
    run: PromptRun
    past: int
    seq: int
    plain: Sequence[bool]
    states: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    placed: list[dict[str, Any]] = field(default_factory=list)
    masks: list[HostMask] = field(default_factory=list)
    end: int = 0
    trace: ExampleTrace | None = None

    def take(self, tokens: Tensor, states: Tensor) -> None:
        """`tokens` leave before the layer that comes next, which `states` would have entered."""
        layer = len(self.masks)
        if layer in self.states:
            before, held = self.states[layer]
            tokens, states = torch.cat([before, tokens]), torch.cat([held, states])
        order = tokens.argsort()
        self.states[layer] = (tokens[order], states[order])

    def enter(
        self, kwargs: Mapping[str, Any], mask: HostMask, held: Any, features: AddedFeatures | None, is_visual: bool
    ) -> None:
        """The next layer runs, with visual rows (`is_visual`) or without; `held` is its layer of the cache. `features`:
        what is added to its rows. Raises UnsupportedModelError where what left could not run this layer later."""
        layer = len(self.masks)
        reached = (layer, layer - 1) if layer in self.states else (layer,)
        is_added_to = features is not None and any(map(features.reaches, reached))
        if self.states and (is_added_to or not self.plain[layer]):
            raise UnsupportedModelError(
                f"Tokens that left before layer {layer} cannot come back, as rows "
                f"{'get features of the image' if is_added_to else 'attend in another way'} there; let tokens leave "
                "later, or leave recall out."
            )
        self.placed.append({name: given for name, given, _ in per_row(kwargs)})
        self.masks.append(mask)
        if is_visual:
            self.end = layer + 1
        if layer + 1 == len(self.plain) and isinstance(held, PrunedLayer):
            self.states = {left: rows for left, rows in self.states.items() if left < self.end}
            held.left = self


class RecallableRows(LiveRows):
    """The rows of one example; what leaves is handed to `left`."""

    def __init__(self, left: LeftRows) -> None:
        super().__init__([left.layout], left.seq)
        self._left = left
        self._gone: list[Tensor] = []

    def drop(self, example: int, kept: Tensor, closed: Tensor | None) -> None:
        self._gone.append(self.tokens[example][others(kept, self.tokens[example].numel())])
        super().drop(example, kept, closed)

    def repack(self, hidden: Tensor) -> Tensor:
        if self._gone:
            gone, self._gone = torch.cat(self._gone), []
            where = torch.searchsorted(self.rows.index[0], self.layouts[0].visual[gone])
            self._left.take(gone, self.states(0, hidden)[where])
        return super().repack(hidden)


def check_recall(host: Host, pruner: Pruner) -> None:
    """Raises UnsupportedModelError where tokens could not come back in this model, or not to this method."""
    if not pruner.recalls:
        return
    devices = {parameter.device for layer in host.layers for parameter in layer.parameters()}
    why = {
        "layers that pass a state from row to row, which has gone on": bool(host.states),
        "a cache of latents": host.caches_latents,
        f"{host.implementation}, only with 'sdpa' or 'eager'": host.form not in (MaskForm.BOOL, MaskForm.ADDED),
        "layers on several devices": len(devices) > 1,
        "a method that merges tokens, which would come twice": pruner.merges,
    }
    for what, is_so in why.items():
        if is_so:
            raise UnsupportedModelError(f"Tokens cannot come back with {what}; leave recall out.")


def left_rows(
    host: Host, pruner: Pruner, layouts: Sequence[TokenLayout], runs: Sequence[PromptRun], past: int, seq: int
) -> LeftRows:
    """For a prompt that is read into a cache. Raises UnsupportedModelError for one that nothing can come back to."""
    if len(layouts) > 1:
        raise UnsupportedModelError(
            "Tokens come back to one prompt at a time; pass one example without beams, or leave recall out."
        )
    if runs[0].may_close_gaps:
        raise UnsupportedModelError(
            "Tokens cannot come back where rows closed up over them; add positions='keep', or leave recall out."
        )
    plain = [pruner.routing(layer).is_plain for layer in range(len(host.layers))]
    return LeftRows(layouts[0], runs[0], past, seq, plain)


# ---- while the answer is decoded -------------------------------------------------------------------------------------


class Answering:
    """One forward after a prompt, in which its method chooses again.

    Args:
        layers: of the cache. step: rows after the prompt, this forward's included. total: logical rows of the cache
            with them.
    """

    def __init__(self, host: Host, left: LeftRows, layers: Sequence[Any], step: int, total: int) -> None:
        self._host, self._left, self._layers = host, left, layers
        self._step, self._total = step, total
        self._rows = left.layout.visual[:0]  # that come back, of the prompt's forward
        self._states: Tensor | None = None  # what they enter the next layer with, `[1, k, d]`
        self._is_late = False  # they run, and not those of the answer

    @classmethod
    def of(cls, host: Host, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Answering | None:
        """For a call of the decoder without visual rows; None where nothing is to be chosen."""
        call, depth = bound(host.decoder, args, kwargs), len(host.layers)
        layers = getattr(call["cache"], "layers", ())
        left = getattr(layers[depth - 1], "left", None) if len(layers) >= depth else None
        rows = call.get("inputs_embeds") if call.get("input_ids") is None else call["input_ids"]
        if left is None or rows is None:
            return None
        if len(rows) > 1:
            raise UnsupportedModelError("Tokens cannot come back into a cache that was repeated; leave recall out.")
        total = int(call["cache"].get_seq_length()) + rows.shape[1]
        step = total - left.past - left.seq
        return cls(host, left, layers, step, total) if left.run.chooses_again(step, rows.shape[1]) else None

    def enter_layer(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Before the rows of the answer enter a layer: those that come back run it, and enter its cache."""
        left = self._left
        if self._states is None or layer >= left.end:
            return
        rows = Rows((self._rows,), left.seq)
        given = arguments_for(rows, rows, {**kwargs, **left.placed[layer]})
        self._is_late = True
        try:
            output = self._host.layers[layer].forward(self._states, **given)
        finally:
            self._is_late = False
        self._states = output[0] if isinstance(output, tuple) else output

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The attention of a layer's rows; after that of the answer's the method may choose."""
        if self._is_late:
            return self._attend_late(layer, module, qkv, kwargs), None
        output = self._host.kernel(module, *qkv, mask, **kwargs)
        if layer + 1 in self._left.states:
            self._choose(layer, qkv, mask, kwargs)
        return output

    def _attend_late(self, layer: int, module: nn.Module, qkv: QKV, kwargs: Any) -> Tensor:
        """Rows that come back see what the prompt's mask lets them see of its rows in the cache, and each other."""
        left, held, (q, k, v) = self._left, self._layers[layer], qkv
        older = held.columns.shape[1]  # without the rows of the answer
        columns = self._rows + left.past
        allowed = left.masks[layer].values(0, self._rows, torch.cat([held.columns[0], columns]))
        told = allowed[None, None] if allowed.is_floating_point() else self._host.form.of(allowed[None], q.dtype)
        keys, values = (torch.cat([old[:, :, :older], new], 2) for old, new in ((held.keys, k), (held.values, v)))
        held.bring(k, v, columns)
        self._write_down(layer, allowed.numel())
        return run_kernel(self._host.kernel, module, (q, keys, values), told, False, kwargs)

    def _choose(self, layer: int, qkv: QKV, mask: Tensor | None, kwargs: Any) -> None:
        """What the method asks for of the tokens that left after this layer comes back."""
        left = self._left
        view = self._view(layer, qkv, mask, kwargs)
        kept = left.run.select_again(layer, view) if len(view.tokens) else None
        assert left.trace is not None
        left.trace.work[layer].score_pairs += view.pairs
        if kept is None:
            return
        tokens, states = left.states[layer + 1]
        is_back = torch.isin(tokens, view.tokens[kept])
        back, gone = is_back.nonzero().flatten(), (~is_back).nonzero().flatten()
        if not len(back):
            return
        left.states[layer + 1] = (tokens[gone], states[gone])
        left.trace.recalled.append(Recalled(self._step, layer + 1, tokens[back].tolist()))
        rows, new = left.layout.visual[tokens[back]], states[None, back]
        if self._states is not None:  # others are on their way from an earlier layer
            rows, new = torch.cat([self._rows, rows]), torch.cat([self._states, new], 1)
        self._rows, self._states = rows, new

    def _view(self, layer: int, qkv: QKV, mask: Tensor | None, kwargs: Any) -> LayerView:
        """A layer's attention from the answer's rows, over all visual tokens that it holds keys of."""
        left, held, (q, k, v) = self._left, self._layers[layer], (part[0] for part in qkv)
        size, count = k.shape[1], q.shape[1]
        place = torch.full((self._total,), -1, device=k.device)
        is_pruned = isinstance(held, PrunedLayer)
        columns = held.all_columns()[0] if is_pruned else torch.arange(self._total - size, self._total, device=k.device)
        place[columns] = torch.arange(size, device=k.device)
        where = place[left.layout.visual + left.past]
        tokens = (where >= 0).nonzero().flatten()  # a sliding window may have let go of some
        own = torch.arange(count, device=k.device)

        def allowed(which: Tensor) -> Tensor | None:
            if mask is None:
                return None
            told = mask[0, 0, which]
            return told if told.dtype == torch.bool else told.masked_fill(~is_open(told), float("-inf"))

        return LayerView(
            *(q, k, v, own, own + size - count, where[tokens], tokens, left.layout, scaling_of(kwargs, q), allowed),
            softcap=kwargs.get("softcap"),
            last=count - 1,
            last_sees_all=mask is None,
        )

    def _write_down(self, layer: int, pairs: int) -> None:
        """What a layer ran, and holds, for the rows that come back."""
        assert self._left.trace is not None
        work, count = self._left.trace.work[layer], len(self._rows)
        work.rows += count
        work.attention_rows += count
        work.key_rows += count
        work.value_rows += count
        work.attention_pairs += pairs
        self._left.trace.key_lengths[layer] += count
