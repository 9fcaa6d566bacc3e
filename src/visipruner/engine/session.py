"""One forward that brings visual rows: which rows run from layer to layer, and what the pruner decides.

Each layer is entered (which rows run in it), attends (by its plan; then the pruner looks) and is left for the next one;
after the last, rows go back to their places. docs/engine.md tells the whole way of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.contract.choosing import others as left_out
from visipruner.contract.layer_view import LayerView
from visipruner.contract.layout import TokenLayout
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.routing import PLAIN
from visipruner.engine.attention import QKV
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.calls import cache_of, check_narrowed, narrowed
from visipruner.engine.deepstack import AddedFeatures
from visipruner.engine.devices import Copies, device_of
from visipruner.engine.edges import OtherKeys, PackedExample
from visipruner.engine.host import Host
from visipruner.engine.image_cache import SharedPrefix
from visipruner.engine.layer_plan import PLAN, LayerPlan, Look, Planner
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.masks import HostMask
from visipruner.engine.patch_table import Vision
from visipruner.engine.paused import is_resumed, paused_keys
from visipruner.engine.projection import Projection
from visipruner.engine.recall import LeftRows, RecallableRows
from visipruner.engine.record import Record
from visipruner.engine.run_ahead import EntryLook, EntryWork, RunAhead
from visipruner.engine.soft import blended, is_biased
from visipruner.engine.states import StateLayers, recurrence_of
from visipruner.engine.storing import Storing
from visipruner.engine.views import packed_view, whole_view
from visipruner.errors import UnsupportedModelError

# What only layers with all of their rows can give, by the argument that asks for it.
WHOLE = {"output_attentions": "whole attention maps", "output_router_logits": "router logits of every row"}


@dataclass(frozen=True)
class Forward:
    """Facts about one forward of the decoder.

    Attributes:
        seq: rows of this forward, padding included. past: logical rows already in the cache.
        past_real: per example, those of them that are not padding.
        prompt_end: rows from this one on were generated after the prompt (a forward without a cache repeats them).
        wants_whole: the argument that asks for what only layers with all of their rows can give, None where none does.
    """

    seq: int
    past: int
    past_real: list[int]
    prompt_end: int
    wants_whole: str | None = None


class PromptSession:
    """Carries a batch of prompts through the layers, dropping and routing rows as a pruner says.

    Until something is dropped or routed the host's tensors are left alone, so a pruner that keeps everything is the
    plain model to the last bit. From then on rows are packed (`Rows`): `[1, sum of lengths, d]`.

    Args:
        host: whose attention function runs.
        owner: weak reference to the engine; caches refuse to go on without it.
        layouts, runs: one of each per example.
        run_ahead: runs a layer up to its attention, for pruners that ask. vision: what the tower saw, per example.
        shared: what other prompts know of the rows up to the end of the image; of a single example only.
        left: holds what leaves, where that may come back; of a single example only.

    Attributes:
        record: what became of each example, for the trace.
        closed: per example `[k]` long, tokens that left without a gap.
    """

    def __init__(
        self,
        pruner: Pruner,
        host: Host,
        owner: Any,
        layouts: Sequence[TokenLayout],
        runs: Sequence[PromptRun],
        forward: Forward,
        run_ahead: RunAhead,
        vision: Sequence[Vision | None],
        shared: SharedPrefix | None = None,
        left: LeftRows | None = None,
    ) -> None:
        self._pruner, self._host, self._shared, self._left = pruner, host, shared, left
        self._run_ahead, self._features = run_ahead, None
        self.runs, self._forward = runs, forward
        self._live = LiveRows(layouts, forward.seq) if left is None else RecallableRows(left)
        self._home, self._copies = layouts[0].real.device, Copies()
        self._first_layer = pruner.first_layer()
        self._routing = PLAIN
        self._masks: dict[int, HostMask] = {}
        self._plan: LayerPlan | None = None
        self._entry = EntryLook(self._live, runs, run_ahead, partial(recurrence_of, host), vision)
        self.projection = Projection(self._live)
        self.states = StateLayers(host, pruner, self._live, forward.past)
        self.closed: list[Tensor] = [layout.visual[:0] for layout in layouts]
        self._narrowed: dict[str, Any] = {}
        self._storing = Storing(self._live, owner, forward.past, forward.seq, shared)
        self._planner = Planner(host, self._live, runs, forward.prompt_end)
        self.record = Record(layouts, forward.seq, forward.past_real)
        if left is not None:
            left.trace = self.record.traces[0]

    _features: AddedFeatures | None

    @property
    def merged(self) -> list[dict[int, Tensor]]:
        """Per example, the states that kept tokens took over on entry to a layer."""
        return self._entry.merged

    def take_features(self, features: AddedFeatures) -> None:
        """Features that the host must not add itself, as it does not know which rows are left.

        Raises UnsupportedModelError where they belong to layers before visual rows come in.
        """
        if self._first_layer:
            raise UnsupportedModelError(
                "This family adds features of the image to its rows in early layers, so they cannot come in later; "
                "choose settings with which they are there from the first layer on."
            )
        self._features = features

    # ---- enter ------------------------------------------------------------------------------------------------------

    def enter_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows a layer's inputs to the rows that run. Returns new objects; the host's tensors are not touched."""
        if hidden.ndim != 3:
            raise UnsupportedModelError(
                f"Layer {layer} is given hidden states {list(hidden.shape)}, not [batch, seq, d], which cannot be "
                "pruned; choose another model."
            )
        self._routing = self._pruner.routing(layer)
        hidden, kwargs = self._on_its_device(layer, hidden, kwargs)
        hidden = self._rows_of(layer, hidden)
        hidden, entry_work = self._look_at_entry(layer, hidden, kwargs)
        hidden = self._packed(layer, hidden)
        if layer in self.states:
            return hidden, self._pass_state(layer, kwargs, entry_work)
        mask = self._mask(kwargs.get("attention_mask"))
        frozen = self._frozen_keys(layer, kwargs)
        held, others = self._storing.prepare(layer, cache_of(kwargs), self._routing, frozen)
        self._plan = None
        if self._live.is_packed:
            self._plan = self._planner.plan(layer, self._routing, mask, others, hidden.dtype)
            self._plan.looks = self._looks(layer, self._plan, mask)
        self._write_down(held, frozen, entry_work)
        if self._left is not None:
            self._left.enter(kwargs, mask, held, self._features, self._live.tokens[0].numel() > 0)
        if self._plan is None:
            given = kwargs.get("attention_mask")
            if isinstance(held, PrunedLayer):
                given = held.narrow_mask(given, self._forward.seq, hidden.dtype, form=self._host.form)
            return hidden, {**kwargs, "attention_mask": given}
        carried = {PLAN: self._plan} if torch.is_grad_enabled() and not self._forward.past else {}
        return hidden, {**kwargs, **self._narrow(kwargs), **carried, "attention_mask": None}

    def _pass_state(self, layer: int, kwargs: dict[str, Any], entry_work: EntryWork) -> dict[str, Any]:
        """The arguments of a layer in which a state passes through the rows: nothing attends, no row is cached."""
        self._plan = None
        self.record.enter_states(self._live, self.states.rows(self._forward.seq))
        self._count_look(entry_work)
        for example, run in enumerate(self.runs):
            view = self.states.blind_view(layer, example, run)
            kept = None if view is None else run.select(layer, view)
            if kept is not None:
                self._drop(example, kept, trigger=layer)
        packed = {**self._narrow(kwargs), "attention_mask": None} if self._live.is_packed else {}
        return {**kwargs, **packed}

    def _write_down(self, held: Any, frozen: Sequence[OtherKeys | None] | None, entry_work: EntryWork) -> None:
        rests = self._shared is not None and self._shared.is_folded
        self.record.enter(self._live, self._routing, self.projection, held, frozen, self._plan, rests)
        self._count_look(entry_work)
        if frozen is not None:
            self.record.projected_beside(frozen, self._host.has_query_maps)

    def _count_look(self, entry_work: EntryWork) -> None:
        for example, (pairs, rows) in entry_work.items():
            self.record.looked(example, pairs, rows)

    def _on_its_device(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        device = device_of(self._host.layers[layer], hidden)
        if hidden.device != device:
            hidden = hidden.to(device)
        self._live.to(device)
        return hidden, kwargs if device == self._home else self._copies.on(device, kwargs)

    def _rows_of(self, layer: int, hidden: Tensor) -> Tensor:
        """Rows that enter a layer: those that were dropped are gone, those that paused may be back."""
        live = self._live
        if layer == 0 < self._first_layer:
            hidden = live.pause(hidden, is_seen=False)
        if live.is_paused and is_resumed(layer, live, self._routing, self._first_layer, self._features, self.runs):
            hidden = live.resume(hidden)
        if live.has_dropped and self._shared is None:
            hidden = live.repack(hidden)
        return self._with_features(layer - 1, hidden)

    def _look_at_entry(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, EntryWork]:
        """The pruner's look at the rows that enter, around which known rows of a shared image rest or run."""
        if self._shared is not None:
            hidden = self._shared.before_look(layer, hidden, kwargs, self._live, self.runs[0])
        hidden, work = self._entry.look(layer, hidden, kwargs, self._drop)
        if self._shared is not None:
            is_changed = layer in self.merged[0]
            hidden = self._shared.after_look(layer, hidden, self._live, is_changed, self._reads_queries(layer))
        return hidden, work

    def _packed(self, layer: int, hidden: Tensor) -> Tensor:
        """Packs the rows, once they are other ones than the host's or attend in another way."""
        live, routing = self._live, self._routing
        if routing.freezes_visual and not live.is_paused:
            hidden = live.pause(hidden, is_seen=True)
        elif live.has_dropped or not (live.is_packed or (routing.is_plain and not is_biased(layer, self.runs))):
            hidden = live.repack(hidden)
        wanted = self._forward.wants_whole
        if live.is_packed and wanted is not None:
            raise UnsupportedModelError(
                f"Layer {layer} runs on fewer rows than the prompt has, so it has no {WHOLE[wanted]}; leave out "
                f"{wanted}, or attach NoPruning() to see those of the plain model."
            )
        live.route(routing)
        self.projection.enter(routing, any(self._is_observed(layer, example) for example in range(len(self.runs))))
        return hidden

    def _mask(self, given: Any) -> HostMask:
        """What the host's mask says, found out once for all layers that are given the same one."""
        known = self._masks.get(id(given))
        if known is None or known.given is not given:
            known = HostMask.of(given, self._forward.past, self._live.layouts, self._forward.seq)
            self._masks[id(given)] = known
        self._host_mask = known
        return known

    def _frozen_keys(self, layer: int, kwargs: dict[str, Any]) -> list[OtherKeys | None] | None:
        """Keys and values of visual rows that do not run in this layer, but are seen."""
        if not self._routing.freezes_visual:
            return None
        return paused_keys(layer, self._live.paused, self._forward.past, self._run_ahead, kwargs)

    def _narrow(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The per-row arguments for the rows that run; gathered once, as the host gives every layer the same ones."""
        check_narrowed(kwargs, self._forward.seq)
        return narrowed(kwargs, self._live.rows, self._live.placed, self._narrowed)

    def _with_features(self, layer: int, hidden: Tensor) -> Tensor:
        """The output of `layer` with what the host adds to it, once the rows that it dropped are gone."""
        if self._features is None:
            return hidden
        return self._features.add(layer, hidden, self._live.rows if self._live.is_packed else None)

    # ---- attend -----------------------------------------------------------------------------------------------------

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One layer's attention, then the pruner's look at it."""
        if self._plan is not None:
            if self._shared is not None and self._plan.parts[0].others is None:
                self._shared.note_attention(layer, self._plan.parts[0], qkv[1][0], qkv[2][0], self._host_mask)
            return self._plan.attend(module, qkv, kwargs), None
        q, k, v = qkv
        output, weights = self._host.kernel(module, q, k, v, mask, **kwargs)
        self.record.attended(q.shape[-2] * k.shape[-2])
        for example in range(len(self.runs)):
            if self._is_observed(layer, example):
                seen = (q[example], k[example], v[example])
                self._ask(layer, example, whole_view(self._live, example, self._host_mask, seen, kwargs))
        return output, weights

    def _looks(self, layer: int, plan: LayerPlan, mask: HostMask) -> dict[int, Look]:
        """What asks the pruner once a planned attention ran, by example."""

        def look(part: PackedExample, kwargs: Any, qkv: QKV, again: bool) -> None:
            self._ask(layer, part.example, packed_view(self._live, part, mask, qkv, kwargs), again)

        return {part.example: partial(look, part) for part in plan.parts if self._is_observed(layer, part.example)}

    def _is_observed(self, layer: int, example: int) -> bool:
        can_be_seen = self._live.tokens[example].numel() > 0 and self._routing.visual_rows_attend
        return can_be_seen and self.states.looked_at(layer, self.runs[example]) is not None

    def _reads_queries(self, layer: int) -> bool:
        """Whether the pruner will look at more rows' queries than the last one's."""
        return self._is_observed(layer, 0) and not self._pruner.reads_last_row_only

    def _ask(self, layer: int, example: int, view: LayerView, again: bool = False) -> None:
        """Asks the run, and follows its answer unless it was asked `again` by a repeated layer."""
        kept = self.states.select(layer, self.runs[example], view)
        if again:
            return
        self.record.looked(example, view.pairs)
        if kept is not None:
            self._drop(example, kept, trigger=layer)

    # ---- leave ------------------------------------------------------------------------------------------------------

    def _drop(self, example: int, kept: Tensor, trigger: int) -> None:
        """The visual tokens at positions `kept` among those present go on; the others leave before the next layer."""
        run, tokens = self.runs[example], self._live.tokens[example]
        if kept.numel() == tokens.numel():
            return
        if run.trigger_layer is None and trigger >= 0:
            first = len(self._live.layouts[example].visual) == tokens.numel()
            run.trigger_layer = trigger if first else None
        closed = self._closed_by(run, tokens, kept)
        if closed is not None and closed.numel():
            self.closed[example] = torch.cat([self.closed[example].to(closed), closed])
            self.record.renumber(example, trigger + 1)
        self._live.drop(example, kept, closed)

    def _closed_by(self, run: PromptRun, tokens: Tensor, kept: Tensor) -> Tensor | None:
        """Which of the tokens that leave also leave no gap in the positions."""
        return run.without_gap(tokens[left_out(kept, tokens.numel())]) if run.may_close_gaps else None

    def blend(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """After a layer: visual rows take over only the share of its output that their run says."""
        return blended(layer, self._live, self.runs, before, after)

    def close(self) -> None:
        """After the forward, however it ended: the last plan, which knows this session, is let go."""
        self._plan = None

    def leave_layers(self, hidden: Tensor) -> Tensor:
        """After the last layer: rows go back to their places, `[batch, seq, d]`, dropped ones as zeros."""
        self.record.leave(self._live, self.runs, self.merged)
        if self._live.is_paused:
            hidden = self._live.resume(hidden)
        hidden = self._with_features(len(self._host.layers) - 1, hidden)
        if self._shared is not None:
            hidden = self._shared.complete(len(self._host.layers), hidden, self._live)
        return self._live.rows.scatter(hidden) if self._live.is_packed else hidden
