"""One forward that brings visual rows: which rows are in play from layer to layer, and what the pruner decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.accounting.record import ExampleTrace, LayerWork
from visipruner.contract.layer_view import LayerView
from visipruner.contract.layout import TokenLayout
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.routing import PLAIN, Needed, Routing
from visipruner.contract.training_run import TrainingRun
from visipruner.engine.added import AddedFeatures
from visipruner.engine.arguments import cache_of, map_tensors, per_row, scaling_of
from visipruner.engine.cache import Incoming, PrunedLayer, seal_first
from visipruner.engine.devices import Copies, device_of
from visipruner.engine.entering import Entering, RunAhead
from visipruner.engine.frame import FRAME, Frame, Look, joined
from visipruner.engine.frozen import frozen_keys
from visipruner.engine.host import Host
from visipruner.engine.image_cache import SharedPrefix
from visipruner.engine.masks import HostMask
from visipruner.engine.present import Present
from visipruner.engine.routed import QKV, Edges, OtherKeys, PackedExample, attend, edge_values, plan
from visipruner.engine.rows import Rows
from visipruner.engine.vision import Vision
from visipruner.errors import UnsupportedModelError

# Which keys rows may see: `[len(rows), keys]` bool, or None for all.
Allowed = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class Forward:
    """Facts about one forward of the decoder.

    Attributes:
        seq: rows of this forward, padding included. past: logical rows already in the cache.
        past_real: per example, those of them that are not padding.
        prompt_end: rows from this one on were generated after the prompt (a forward without a cache repeats them).
        wants_maps: the caller asked for whole attention maps, which only layers with all of their rows can give.
    """

    seq: int
    past: int
    past_real: list[int]
    prompt_end: int
    wants_maps: bool = False


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

    Attributes:
        examples: what becomes of each, for the trace. closed: per example `[k]` long, tokens that left without a gap.
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
    ) -> None:
        self._pruner, self._owner, self._shared = pruner, owner, shared
        self._kernel, self._eager = host.kernel, host.is_eager
        self._run_ahead, self._spares_queries = run_ahead, host.has_query_maps
        self._features: AddedFeatures | None = None
        self.runs, self._forward = runs, forward
        self._present = Present(layouts, forward.seq)
        self._layers, self._home, self._copies = host.layers, layouts[0].real.device, Copies()
        self._first_layer = pruner.first_layer()
        self._routing, self._looked_at = PLAIN, False
        self._host_mask = HostMask(None, forward.past, forward.seq)
        self._others: list[OtherKeys | None] = [None] * len(layouts)
        self._narrowed: dict[str, tuple[Any, Rows, Any]] = {}
        self._entering = Entering(self._present, runs, run_ahead, vision)
        self.closed: list[Tensor] = [layout.visual[:0] for layout in layouts]
        self._plans: dict[tuple[int, Routing, int], tuple[Rows, Tensor | None, list[Edges]]] = {}
        self.examples = [
            ExampleTrace(
                prompt_length=len(layout.real),
                num_visual=len(layout.visual),
                tokens_per_image=layout.tokens_per_image,
                grids=layout.grids,
            )
            for layout in layouts
        ]

    @property
    def merged(self) -> list[dict[int, Tensor]]:
        """Per example, the states that kept tokens took over on entry to a layer."""
        return self._entering.merged

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

    # ---- from layer to layer -----------------------------------------------------------------------------------

    def enter_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows a layer's inputs to the rows in play. Returns new objects; the host's tensors are not touched."""
        self._routing = self._pruner.routing(layer)
        present = self._present
        hidden = hidden.to(device_of(self._layers[layer], hidden))
        present.to(hidden.device)
        if hidden.device != self._home:
            kwargs = self._copies.on(hidden.device, kwargs)
        if layer == 0 < self._first_layer:
            hidden = present.hold_back(hidden, is_seen=False)
        if present.is_waiting and self._returns(layer):
            hidden = present.bring_in(hidden)
        if present.has_dropped and self._shared is None:
            hidden = present.repack(hidden)
        hidden = self._with_features(layer - 1, hidden)
        if self._shared is not None:
            hidden = self._shared.before_look(layer, hidden, kwargs, present, self.runs[0])
        hidden, entry_work = self._entering.look(layer, hidden, kwargs, self._drop)
        if self._shared is not None:
            is_changed = layer in self.merged[0]
            hidden = self._shared.after_look(layer, hidden, present, is_changed, self._reads_queries(layer))
        self._looked_at = any(self._is_observed(layer, example) for example in range(len(self.runs)))
        biased = any(isinstance(run, TrainingRun) and run.biases(layer) for run in self.runs)
        if self._routing.freezes_visual and not present.is_waiting:
            hidden = present.hold_back(hidden, is_seen=True)
        elif present.has_dropped or not (present.is_packed or (self._routing.is_plain and not biased)):
            hidden = present.repack(hidden)
        if present.is_packed and self._forward.wants_maps:
            raise UnsupportedModelError(
                f"Layer {layer} runs on fewer rows than the prompt has, so it has no whole attention map; leave out "
                "output_attentions, or attach NoPruning() to see the maps of the plain model."
            )
        present.route(self._routing)
        mask = kwargs.get("attention_mask")
        frozen: list[OtherKeys | None] = [None] * len(self._present.layouts)
        if self._routing.freezes_visual:
            frozen = frozen_keys(layer, present.waiting, self._forward.past, self._run_ahead, kwargs)
        held = self._prepare_cache(layer, cache_of(kwargs), frozen)
        if not present.is_packed and isinstance(held, PrunedLayer):
            mask = held.narrow_mask(mask, self._forward.seq, hidden.dtype)
        self._host_mask = HostMask(mask, self._forward.past, self._forward.seq)
        self._record(held, entry_work, frozen)
        if present.is_packed:
            return hidden, {
                **kwargs,
                **self._narrow(kwargs),
                **self._frame(layer, hidden.dtype),
                "attention_mask": None,
            }
        return hidden, {**kwargs, "attention_mask": mask}

    def _returns(self, layer: int) -> bool:
        """Whether the visual rows that wait run again from this layer on, or are needed as rows to be looked at or to
        leave."""
        if not self._present.waiting.is_seen:
            return layer == self._first_layer
        if self._present.has_dropped or not self._routing.freezes_visual:
            return True
        is_added_to = self._features is not None and self._features.reaches(layer - 1)
        return is_added_to or any(run.observes_entry(layer) for run in self.runs)

    def leave_layers(self, hidden: Tensor) -> Tensor:
        """After the last layer: rows go back to their places, `[batch, seq, d]`, dropped ones as zeros."""
        for trace, run, tokens in zip(self.examples, self.runs, self._present.tokens, strict=True):
            trace.kept.append(tokens.tolist())
            trace.trigger_layer, trace.exit_votes = run.trigger_layer, list(run.exit_votes)
        for trace, merged in zip(self.examples, self.merged, strict=True):
            trace.merged = list(merged)
        if self._present.is_waiting:
            hidden = self._present.bring_in(hidden)
        hidden = self._with_features(len(self.examples[0].work) - 1, hidden)
        if self._shared is not None:
            hidden = self._shared.complete(len(self.examples[0].work), hidden, self._present)
        return self._present.rows.scatter(hidden) if self._present.is_packed else hidden

    def blend(self, layer: int, before: Tensor, after: Tensor) -> Tensor:
        """After a layer: visual rows take over only the share of its output that their run says."""
        places, shares = [], []
        for example, run in enumerate(self.runs):
            share = run.output_share(layer) if isinstance(run, TrainingRun) else None
            if share is not None and self._present.tokens[example].numel():
                places.append(self._present.places(example)[self._present.visual_among(example)])
                shares.append(share.to(after).expand(len(places[-1])))
        if not places:
            return after
        where, share = torch.cat(places), torch.cat(shares)[:, None]
        old, new = before.flatten(0, 1)[where], after.flatten(0, 1)[where]
        return after.flatten(0, 1).index_copy(0, where, torch.lerp(old, new, share)).view_as(after)

    def _with_features(self, layer: int, hidden: Tensor) -> Tensor:
        """The output of `layer` with what the host adds to it, once the rows that it dropped are gone."""
        if self._features is None:
            return hidden
        return self._features.add(layer, hidden, self._present.rows if self._present.is_packed else None)

    def _narrow(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The per-row arguments for the rows in play; gathered once, as the host gives every layer the same ones."""
        narrowed = {}
        in_play = self._present.placed
        for name, given, seq_dim in per_row(kwargs):
            source, rows, result = self._narrowed.get(name, (None, None, None))
            if source is not given or rows is not in_play:
                result = map_tensors(partial(in_play.gather, seq_dim=seq_dim), given)
                self._narrowed[name] = (given, in_play, result)
            narrowed[name] = result
        return narrowed

    def _record(self, held: Any, entry_work: Sequence[tuple[int, int]], frozen: Sequence[OtherKeys | None]) -> None:
        incoming = held.incoming if isinstance(held, PrunedLayer) else None
        present = self._present
        for example, trace in enumerate(self.examples):
            real, attending = present.rows.lengths[example], present.attending.lengths[example]
            padding = 0 if present.is_packed else self._forward.seq - real
            stored = incoming.stored[example] if incoming is not None else None
            past = held.held_rows(example) if isinstance(held, PrunedLayer) else self._forward.past_real[example]
            tokens = present.tokens[example]
            visual = 0 if self._shared is not None and self._shared.is_folded else tokens.numel()
            keys, values = (
                self._projected_rows(needed, attending, visual) + padding
                for needed in (self._routing.visual_keys, self._routing.visual_values)
            )
            trace.kept.append(tokens.tolist())
            trace.query_lengths.append(real)
            trace.visual_attention.append(self._routing.text_to_visual == "attend")
            resting = frozen[example]
            beside = 0 if resting is None else resting.columns.numel()
            if beside:
                trace.frozen.append(len(trace.work))
            trace.key_lengths.append(past + beside + (attending if stored is None else int(stored.sum())))
            work = LayerWork(real + padding, attending + padding, keys, values)
            work.score_pairs, work.score_rows = entry_work[example]
            if self._spares_queries:
                work.key_rows += beside
                work.value_rows += beside
            else:  # one matrix makes all three
                work.score_rows += beside
            trace.work.append(work)

    # ---- self-attention on fewer rows than the layer has ----------------------------------------------------------

    @property
    def attends_partly(self) -> bool:
        """True when some of the layer's rows take no part in its self-attention."""
        return self._present.attending is not self._present.rows

    def enter_attention(self, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows self-attention's inputs from the layer's rows to those that attend."""
        where = self._present.attending.within(self._present.rows)
        narrowed = {
            name: map_tensors(lambda part, dim=dim: part.index_select(dim, where), given)  # type: ignore[misc]
            for name, given, dim in per_row(kwargs)
        }
        return hidden.index_select(1, where), {**kwargs, **narrowed}

    def leave_attention(self, output: Tensor) -> Tensor:
        """Attention's output for all the layer's rows: zero for visual rows, the sink's own row included."""
        rows, text = self._present.rows, self._present.text_places()
        where = self._present.attending.within(rows)[text]
        full = output.new_zeros(1, rows.flat.numel(), output.shape[-1])
        return full.index_copy_(1, where, output[:, text])

    # ---- keys and values of visual rows that nobody needs -----------------------------------------------------------

    def enter_projection(self, needed: Needed, hidden: Tensor) -> Tensor | None:
        """Before the key or value projection: only text rows and the visual rows that some row attends to."""
        if self._projects_all(needed):
            return None
        return hidden.index_select(1, self._present.text_places(with_sink=needed == "sink"))

    def leave_projection(self, needed: Needed, output: Tensor) -> Tensor | None:
        """After it: back to `[1, n, d_kv]`, with zeros that no kernel will use."""
        if self._projects_all(needed):
            return None
        full = output.new_zeros(1, self._present.attending.flat.numel(), output.shape[-1])
        return full.index_copy_(1, self._present.text_places(with_sink=needed == "sink"), output)

    def _projects_all(self, needed: Needed) -> bool:
        # A pruner that looks at the layer is shown every key and value.
        return needed == "all" or self._looked_at or not self._routing.visual_rows_attend

    def _projected_rows(self, needed: Needed, attending: int, visual: int) -> int:
        if self._projects_all(needed):
            return attending
        return attending - visual + (1 if needed == "sink" and visual else 0)

    # ---- cache --------------------------------------------------------------------------------------------------

    def _prepare_cache(self, layer: int, cache: Any, frozen: list[OtherKeys | None]) -> Any:
        """Makes the cache's layer able to hold what this layer will bring; returns it, or None without a cache."""
        self._others = frozen
        if cache is None:
            return None
        if cache.layer_class_to_replicate is not None:
            while len(cache.layers) <= layer:
                cache.layers.append(cache.layer_class_to_replicate())
        held = cache.layers[layer]
        as_is = self._present.rows.is_whole and self._forward.past == 0 and self._stores_all()
        if not self._present.is_packed or (as_is and not isinstance(held, PrunedLayer) and self._shared is None):
            return held
        pruned = cache.layers[layer] = PrunedLayer.replace(held, len(self._present.layouts), self._owner)
        if layer > 0:
            seal_first(cache)
        if self._forward.past:
            turns = [_turns_before(pruned, example) for example in range(len(self._present.layouts))]
            self._others = [
                turn if rows is None else turn.joined(rows) for turn, rows in zip(turns, frozen, strict=True)
            ]
        pruned.incoming = self._incoming(frozen)
        if self._shared is not None:
            self._others = [self._shared.begin(layer, pruned)]
        return pruned

    def _stores_all(self) -> bool:
        routing = self._routing
        return routing.visual_rows_attend and (routing.prompt_only or routing.text_to_visual == "attend")

    def _incoming(self, frozen: list[OtherKeys | None]) -> Incoming:
        """What later text rows could see of this layer: every row, text rows only, or merged values."""
        routing, rows = self._routing, self._present.attending
        visual = [self._present.visual_flags(example) for example in range(len(self.examples))]
        stored: list[Tensor | None] = [None] * len(visual)
        transform: list[Callable[[Tensor], Tensor] | None] = [None] * len(visual)
        if routing.visual_rows_attend and not self._stores_all():
            if routing.keeps_visual_keys:
                edge = routing.text_to_visual
                transform = [partial(edge_values, edge, visual=flags) if flags.any() else None for flags in visual]
            else:
                stored = [~flags for flags in visual]
        bias = [self._sink_bias(example) for example in range(len(visual))] if routing.sink else None
        columns = [self._forward.past + index for index in rows.index]
        beside = [None if rows is None else (rows.keys, rows.values, rows.columns) for rows in frozen]
        return Incoming(rows.spans(), columns, stored, self._forward.seq, transform, bias, beside)

    def _sink_bias(self, example: int) -> Tensor:
        """`[n]`: log(n_v) on the sink, for it stands for the mass of all n_v visual rows."""
        count = self._present.tokens[example].numel()
        return self._present.visual_flags(example).float() * math.log(max(1, count))

    # ---- attention ------------------------------------------------------------------------------------------------

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One layer's attention, then the pruner's look at it."""
        if self._present.is_packed:
            spans = self._present.attending.spans()
            outputs = [
                self._attend_example(layer, example, module, qkv, span, kwargs) for example, span in enumerate(spans)
            ]
            return joined(outputs), None
        q, k, v = qkv
        output, weights = self._kernel(module, q, k, v, mask, **kwargs)
        for example, layout in enumerate(self._present.layouts):
            self.examples[example].work[layer].attention_pairs += q.shape[-2] * k.shape[-2]
            if self._is_observed(layer, example):
                older = k.shape[-2] - self._forward.seq
                allowed = partial(self._allowed_unpacked, example, layout.real, k.shape[-2])
                tokens = self._present.tokens[example]
                rows = LookedAt(layout.real, layout.real + older, layout.visual[tokens] + older, tokens)
                self._look(layer, example, kwargs, (q[example], k[example], v[example]), rows, allowed)
        return output, weights

    def _attend_example(
        self, layer: int, example: int, module: nn.Module, qkv: QKV, span: slice, kwargs: Any
    ) -> Tensor:
        q, k, v = (part[:, :, span] for part in qkv)
        part = self._packed_example(example)
        keys_visual = part.visual
        columns = part.rows + self._forward.past
        if part.others is not None:
            k, v = part.others.before(k, v)
            columns = torch.cat([part.others.columns, columns])
            keys_visual = torch.cat([part.others.visual, keys_visual])
        elif self._shared is not None:
            self._shared.note_attention(layer, part, k[0], v[0], self._host_mask)
        edges = self._edges(layer, part, q.dtype)
        self.examples[example].work[layer].attention_pairs += sum(group.pairs for group in edges)
        output = attend(self._kernel, module, (q, k, v), edges, keys_visual, kwargs)
        if self._is_observed(layer, example):
            seen = self._seen_packed(part, columns, keys_visual)
            self._look(layer, example, kwargs, (q[0], k[0], v[0]), *seen)
        return output

    def _seen_packed(self, part: PackedExample, columns: Tensor, visual: Tensor) -> tuple[LookedAt, Allowed]:
        own = torch.arange(part.rows.numel(), device=part.rows.device)
        tokens = self._present.tokens[part.example]
        rows = LookedAt(own, own + columns.numel() - own.numel(), visual.nonzero().flatten(), tokens)
        mask = self._host_mask
        return rows, lambda which: mask.allowed(part.example, part.rows[which], columns)

    def _packed_example(self, example: int) -> PackedExample:
        rows = self._present.attending.index[example]
        bias = self._sink_bias(example) if self._routing.sink else None
        later = rows >= self._forward.prompt_end
        return PackedExample(example, rows, self._present.visual_flags(example), later, bias, self._others[example])

    def _edges(self, layer: int, part: PackedExample, dtype: torch.dtype) -> list[Edges]:
        """Groups of rows and their masks, remembered as long as rows, routing and the host's mask stay the same."""
        run = self.runs[part.example]
        bias = None
        if isinstance(run, TrainingRun) and part.others is None:
            bias = run.edge_bias(layer, part.rows, part.visual)
        if bias is not None:
            return plan(self._routing, self._host_mask, replace(part, sink_bias=bias), self._eager, dtype)
        mask = self._host_mask.tensor
        key = (part.example, self._routing, id(mask))
        known = self._plans.get(key)
        if part.others is None and known is not None and known[0] is self._present.attending:
            return known[2]
        edges = plan(self._routing, self._host_mask, part, self._eager, dtype)
        self._plans[key] = (self._present.attending, mask, edges)
        return edges

    def _frame(self, layer: int, dtype: torch.dtype) -> dict[str, Frame]:
        """While gradients are recorded a layer carries its own attention: checkpointing may run it a second time."""
        if not torch.is_grad_enabled() or self._forward.past:
            return {}
        parts = [self._packed_example(example) for example in range(len(self.runs))]
        edges = [self._edges(layer, part, dtype) for part in parts]
        looks: list[Look | None] = [None] * len(parts)
        for part, groups in zip(parts, edges, strict=True):
            self.examples[part.example].work[layer].attention_pairs += sum(group.pairs for group in groups)
            if self._is_observed(layer, part.example):
                seen = self._seen_packed(part, *_keys_of(part))
                looks[part.example] = partial(self._look_framed, layer, part.example, *seen)
        visual = [_keys_of(part)[1] for part in parts]
        others = [part.others for part in parts]
        return {FRAME: Frame(self._kernel, self._present.attending.spans(), visual, edges, looks, others)}

    def _look_framed(
        self, layer: int, example: int, rows: LookedAt, allowed: Allowed, kwargs: Any, qkv: QKV, again: bool
    ) -> None:
        self._look(layer, example, kwargs, qkv, rows, allowed, again)

    # ---- the pruner's look ------------------------------------------------------------------------------------------

    def _is_observed(self, layer: int, example: int) -> bool:
        can_be_seen = self._present.tokens[example].numel() > 0 and self._routing.visual_rows_attend
        return can_be_seen and self.runs[example].observes(layer)

    def _reads_queries(self, layer: int) -> bool:
        """Whether the pruner will look at more rows' queries than the last one's."""
        return self._is_observed(layer, 0) and not self._pruner.reads_last_row_only

    def _look(
        self,
        layer: int,
        example: int,
        kwargs: Any,
        qkv: QKV,
        rows: LookedAt,
        allowed: Allowed,
        again: bool = False,
    ) -> None:
        """Asks the run, and follows its answer unless it was asked `again` by a repeated layer."""
        queries, keys, values = qkv
        scaling = scaling_of(kwargs, queries)
        run, softcap = self.runs[example], kwargs.get("softcap")
        view = LayerView(
            queries,
            keys,
            values,
            rows.rows,
            rows.columns,
            rows.visual,
            rows.tokens,
            self._present.layouts[example],
            scaling,
            allowed,
            softcap,
        )
        kept = run.select(layer, view)
        if again:
            return
        self.examples[example].work[layer].score_pairs += view.pairs
        if kept is not None:
            self._drop(example, kept, trigger=layer)

    def _allowed_unpacked(self, example: int, real: Tensor, keys: int, which: Tensor) -> Tensor | None:
        if self._host_mask.tensor is None and which.numel() == 1 and int(real[which]) == self._forward.seq - 1:
            return None  # the last row of plain causal attention sees everything
        columns = torch.arange(keys, device=real.device) + self._forward.past + self._forward.seq - keys
        return self._host_mask.allowed(example, real[which], columns)

    def _drop(self, example: int, kept: Tensor, trigger: int) -> None:
        run, tokens = self.runs[example], self._present.tokens[example]
        if kept.numel() < tokens.numel() and run.trigger_layer is None and trigger >= 0:
            first = len(self._present.layouts[example].visual) == tokens.numel()
            run.trigger_layer = trigger if first else None
        stays = torch.zeros_like(tokens, dtype=torch.bool).index_fill(0, kept, True)
        gone = tokens[~stays]
        closed = gone[run.closes_gaps(gone)]
        if closed.numel():
            self.closed[example] = torch.cat([self.closed[example].to(closed), closed])
            renumbered = self.examples[example].renumbered
            if trigger + 1 not in renumbered:
                renumbered.append(trigger + 1)
        self._present.drop(example, kept, closed)


def _keys_of(part: PackedExample) -> tuple[Tensor, Tensor]:
    """Columns of an example's keys within this forward, and which of them are visual."""
    if part.others is None:
        return part.rows, part.visual
    return torch.cat([part.others.columns, part.rows]), torch.cat([part.others.visual, part.visual])


def _turns_before(layer: PrunedLayer, example: int) -> OtherKeys:
    keys, values, columns, bias = layer.past(example)
    return OtherKeys(keys, values, columns, bias, torch.zeros_like(columns, dtype=torch.bool))


@dataclass(frozen=True, eq=False)
class LookedAt:
    """`rows`: which of the queries are rows of the example; `columns`: where those are among the keys; `visual`:
    columns of the visual tokens present; `tokens`: those tokens' numbers in the prompt."""

    rows: Tensor
    columns: Tensor
    visual: Tensor
    tokens: Tensor
