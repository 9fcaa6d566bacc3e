"""Writes down what becomes of each example from layer to layer. Numbers are the host's; kept tokens stay where they are
until somebody reads the trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visipruner.accounting.record import ExampleTrace, LayerWork
from visipruner.contract.layout import TokenLayout
from visipruner.contract.pruner import PromptRun
from visipruner.contract.routing import Routing
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.edges import OtherKeys
from visipruner.engine.layer_plan import LayerPlan
from visipruner.engine.live_rows import LiveRows
from visipruner.engine.projection import Projection


class Record:
    """The examples of one forward.

    Attributes:
        kept: `kept[b][l]` `[k]` long: the visual tokens of example b that enter layer l, then those after the last.
        traces: one of each, without what `kept` says.
    """

    def __init__(self, layouts: Sequence[TokenLayout], seq: int, past_real: Sequence[int]) -> None:
        self._seq, self._past_real = seq, past_real
        self.kept: list[list[Tensor]] = [[] for _ in layouts]
        self.traces = [
            ExampleTrace(
                prompt_length=layout.real.numel(),
                num_visual=layout.visual.numel(),
                tokens_per_image=layout.tokens_per_image,
                grids=layout.grids,
            )
            for layout in layouts
        ]

    def enter(
        self,
        live: LiveRows,
        routing: Routing,
        projection: Projection,
        held: Any,
        frozen: Sequence[OtherKeys | None] | None,
        plan: LayerPlan | None,
        visual_rests: bool,
    ) -> None:
        """What the layer that begins runs. `held`: its layer of the cache, or None. `visual_rests`: visual rows are
        known from another prompt and do not run."""
        for example, trace in enumerate(self.traces):
            tokens = live.tokens[example]
            real, attending = live.rows.lengths[example], live.attending.lengths[example]
            padding = 0 if live.is_packed else self._seq - real
            visual = 0 if visual_rests else tokens.numel()
            keys, values = (
                projection.rows(needed, example, visual) + padding
                for needed in (routing.visual_keys, routing.visual_values)
            )
            work = LayerWork(real + padding, attending + padding, keys, values)
            work.attention_pairs = 0 if plan is None else plan.pairs(example)
            beside = None if frozen is None else frozen[example]
            if beside is not None and beside.columns.numel():
                trace.frozen.append(len(trace.work))
            self.kept[example].append(tokens)
            trace.query_lengths.append(real)
            trace.visual_attention.append(routing.text_to_visual == "attend")
            trace.key_lengths.append(self._keys(example, held, attending, beside))
            trace.work.append(work)

    def enter_states(self, live: LiveRows, state_rows: int) -> None:
        """What a layer runs in which a state passes through `state_rows` of each example, padding included."""
        for example, trace in enumerate(self.traces):
            real = live.rows.lengths[example]
            padding = 0 if live.is_packed else self._seq - real
            self.kept[example].append(live.tokens[example])
            trace.query_lengths.append(real)
            trace.visual_attention.append(True)
            trace.key_lengths.append(0)
            trace.work.append(LayerWork(real + padding, state_rows=state_rows))

    def _keys(self, example: int, held: Any, attending: int, beside: OtherKeys | None) -> int:
        """Keys that the layer holds for later tokens."""
        past = held.held_rows(example) if isinstance(held, PrunedLayer) else self._past_real[example]
        if isinstance(held, PrunedLayer) and held.incoming is not None:
            return past + held.incoming.kept(example)
        return past + attending + (0 if beside is None else beside.columns.numel())

    def looked(self, example: int, pairs: int, rows: int = 0) -> None:
        """What a method computed for its choice in the last layer: (query, key) pairs, and rows projected ahead."""
        work = self.traces[example].work[-1]
        work.score_pairs += pairs
        work.score_rows += rows

    def projected_beside(self, frozen: Sequence[OtherKeys | None], has_query_maps: bool) -> None:
        """Keys and values were made of rows that do not run."""
        for trace, beside in zip(self.traces, frozen, strict=True):
            count = 0 if beside is None else beside.columns.numel()
            if has_query_maps:
                trace.work[-1].key_rows += count
                trace.work[-1].value_rows += count
            else:  # one matrix makes queries, keys and values
                trace.work[-1].score_rows += count

    def attended(self, pairs: int) -> None:
        """Every example's attention in the last layer computed so many pairs."""
        for trace in self.traces:
            trace.work[-1].attention_pairs += pairs

    def renumber(self, example: int, layer: int) -> None:
        """Rows close up over tokens that leave on entry to a layer."""
        renumbered = self.traces[example].renumbered
        if layer not in renumbered:
            renumbered.append(layer)

    def leave(self, live: LiveRows, runs: Sequence[PromptRun], merged: Sequence[Mapping[int, Tensor]]) -> None:
        """After the last layer."""
        for example, (trace, run) in enumerate(zip(self.traces, runs, strict=True)):
            self.kept[example].append(live.tokens[example])
            trace.trigger_layer, trace.exit_votes = run.trigger_layer, list(run.exit_votes)
            trace.merged = list(merged[example])

    def read(self) -> list[ExampleTrace]:
        """The traces, with kept tokens as numbers; one read from the device."""
        distinct = {id(tokens): tokens for kept in self.kept for tokens in kept}
        flat = [tokens.to(self.kept[0][0].device) for tokens in distinct.values()]
        numbers = torch.cat(flat).tolist() if flat else []
        lists, start = {}, 0
        for key, tokens in distinct.items():
            lists[key] = numbers[start : start + tokens.numel()]
            start += tokens.numel()
        for trace, kept in zip(self.traces, self.kept, strict=True):
            trace.kept = [list(lists[id(tokens)]) for tokens in kept]
        return self.traces
