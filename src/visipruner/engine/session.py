"""One forward that brings visual rows: which rows are in play from layer to layer, and what every layer attends to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.engine.attention import Kernel, call_kernel, edge_keys, edge_mask, edge_values
from visipruner.engine.cache import Incoming, PrunedLayer
from visipruner.engine.routing import PLAIN, Routing
from visipruner.engine.rows import Rows
from visipruner.engine.trace import ExampleTrace, LayerWork
from visipruner.engine.view import LayerView
from visipruner.layout import TokenLayout
from visipruner.pruners.base import PromptRun, Pruner

# What a layer is given besides hidden states, per row of the sequence: (argument prefix, sequence dimension).
_PER_ROW = (("position_embeddings", -2), ("position_ids", -1))
_Past = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Forward:
    """Facts about one forward of the decoder.

    Attributes:
        seq: rows of this forward, padding included. past: logical rows already in the cache.
        past_real: per example, those of them that are not padding.
        prompt_end: rows from this one on were generated after the prompt (a forward without a cache repeats them).
    """

    seq: int
    past: int
    past_real: list[int]
    prompt_end: int


class PromptSession:
    """Carries a batch of prompts through the layers, dropping and routing rows as a pruner says.

    Until something is dropped or routed the host's tensors are left alone, so a pruner that keeps everything is the
    plain model to the last bit. From then on rows are packed (`Rows`): `[1, sum of lengths, d]`.
    """

    def __init__(
        self,
        pruner: Pruner,
        kernel: Kernel,
        eager: bool,
        owner: Any,
        layouts: Sequence[TokenLayout],
        runs: Sequence[PromptRun],
        forward: Forward,
    ) -> None:
        self._pruner, self._kernel, self._eager, self._owner = pruner, kernel, eager, owner
        self._layouts, self.runs, self._forward = layouts, runs, forward
        self.rows = Rows(tuple(layout.real for layout in layouts), forward.seq)
        self._attention_rows = self.rows
        self._present = [torch.arange(len(layout.visual), device=layout.visual.device) for layout in layouts]
        self._is_visual = [_flags(layout.visual, forward.seq) for layout in layouts]
        self._packed = self._pending = False
        self._routing = PLAIN
        self._host_mask: Tensor | None = None
        self._past: list[_Past] | None = None
        self._narrowed: dict[str, tuple[Any, Rows, Any]] = {}
        self._masks: dict[tuple[int, str, int], tuple[Rows, Any, tuple[Tensor | None, bool]]] = {}
        self.examples = [
            ExampleTrace(
                prompt_length=len(layout.real),
                num_visual=len(layout.visual),
                tokens_per_image=layout.tokens_per_image,
                grids=layout.grids,
            )
            for layout in layouts
        ]

    # ---- rows -------------------------------------------------------------------------------------------------

    def enter_layer(self, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows a layer's inputs to the rows in play. Returns new objects; the host's tensors are not touched."""
        self._routing = self._pruner.routing(layer)
        if self._pending or not (self._packed or self._routing.is_plain):
            hidden = self._repack(hidden)
        self._attention_rows = self._rows_that_attend() if self._packed else self.rows
        mask = kwargs.get("attention_mask")
        self._host_mask = mask
        cache_layer = self._prepare_cache(layer, kwargs.get("past_key_values"))
        if self._packed:
            kwargs = {**kwargs, **self._narrow(kwargs), "attention_mask": None}
        elif isinstance(cache_layer, PrunedLayer):
            kwargs = {**kwargs, "attention_mask": cache_layer.narrow_mask(mask, self._forward.seq, hidden.dtype)}
        self._record(cache_layer)
        return hidden, kwargs

    def leave_layers(self, hidden: Tensor) -> Tensor:
        """After the last layer: rows go back to their places, `[batch, seq, d]`, dropped ones as zeros."""
        for trace, run, present in zip(self.examples, self.runs, self._present, strict=True):
            trace.kept.append(present.tolist())
            trace.trigger_layer, trace.exit_votes = run.trigger_layer, list(run.exit_votes)
        return self.rows.scatter(hidden) if self._packed else hidden

    def _repack(self, hidden: Tensor) -> Tensor:
        index = []
        for layout, present, visual in zip(self._layouts, self._present, self._is_visual, strict=True):
            alive = ~visual
            alive[layout.visual[present]] = True
            index.append(layout.real[alive[layout.real]])
        rows = Rows(tuple(index), self._forward.seq)
        if self._packed:
            hidden = hidden.index_select(1, rows.within(self.rows))
        else:
            hidden = rows.gather(hidden, -2)
        self.rows, self._packed, self._pending = rows, True, False
        return hidden

    def _rows_that_attend(self) -> Rows:
        if self._routing.visual_rows_attend:
            return self.rows
        index = []
        for rows, visual in zip(self.rows.index, self._is_visual, strict=True):
            attends = ~visual[rows]
            if self._routing.sink:
                attends[visual[rows].nonzero().flatten()[:1]] = True
            index.append(rows[attends])
        return Rows(tuple(index), self._forward.seq)

    def _narrow(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The per-row arguments for the rows in play; gathered once, as the host gives every layer the same ones."""
        narrowed = {}
        for name, given in kwargs.items():
            seq_dim = next((dim for prefix, dim in _PER_ROW if name.startswith(prefix)), None)
            if seq_dim is None or given is None:
                continue
            source, rows, result = self._narrowed.get(name, (None, None, None))
            if source is not given or rows is not self.rows:
                if isinstance(given, Tensor):
                    result = self.rows.gather(given, seq_dim)
                else:
                    result = tuple(self.rows.gather(part, seq_dim) for part in given)
                self._narrowed[name] = (given, self.rows, result)
            narrowed[name] = result
        return narrowed

    # ---- attention on fewer rows than the layer has --------------------------------------------------------------

    @property
    def attends_partly(self) -> bool:
        """True when some of the layer's rows take no part in its self-attention."""
        return self._attention_rows is not self.rows

    def enter_attention(self, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Narrows self-attention's inputs from the layer's rows to those that attend."""
        where = self._attention_rows.within(self.rows)
        narrowed = {}
        for name, given in kwargs.items():
            seq_dim = next((dim for prefix, dim in _PER_ROW if name.startswith(prefix)), None)
            if seq_dim is None or given is None:
                continue
            parts = (given,) if isinstance(given, Tensor) else given
            picked = tuple(part.index_select(seq_dim, where) for part in parts)
            narrowed[name] = picked[0] if isinstance(given, Tensor) else picked
        return hidden.index_select(1, where), {**kwargs, **narrowed}

    def leave_attention(self, output: Tensor) -> Tensor:
        """Attention's output for all the layer's rows: zero for visual rows, the sink's own row included."""
        text = torch.cat([~v[rows] for v, rows in zip(self._is_visual, self._attention_rows.index, strict=True)])
        where = self._attention_rows.within(self.rows)[text]
        full = output.new_zeros(1, self.rows.flat.numel(), output.shape[-1])
        return full.index_copy(1, where, output[:, text])

    # ---- cache ------------------------------------------------------------------------------------------------

    def _prepare_cache(self, layer: int, cache: Any) -> Any:
        """Makes the cache's layer able to hold what this layer will bring; returns it, or None without a cache."""
        self._past = None
        if cache is None:
            return None
        if cache.layer_class_to_replicate is not None:
            while len(cache.layers) <= layer:
                cache.layers.append(cache.layer_class_to_replicate())
        held = cache.layers[layer]
        if not self._packed:
            return held
        stores_as_is = self.rows.is_whole and self._forward.past == 0 and self._stores_all()
        if stores_as_is and not isinstance(held, PrunedLayer):
            return held
        pruned = PrunedLayer.replace(held, len(self._layouts), self._owner)
        cache.layers[layer] = pruned
        if self._forward.past:
            self._past = [pruned.past(example) for example in range(len(self._layouts))]
        pruned.incoming = self._incoming()
        return pruned

    def _stores_all(self) -> bool:
        routing = self._routing
        return routing.visual_rows_attend and (routing.prompt_only or routing.text_to_visual == "attend")

    def _incoming(self) -> Incoming:
        routing, rows = self._routing, self._attention_rows
        visual = [flags[index] for flags, index in zip(self._is_visual, rows.index, strict=True)]
        stored: list[Tensor | None] = [None] * len(visual)
        transform: list[Any] = [None] * len(visual)
        if not self._stores_all() and routing.visual_rows_attend:
            # What text rows to come would see: nothing, or the merged values.
            if routing.keeps_visual_keys:
                transform = [_values_of(routing, flags) if flags.any() else None for flags in visual]
            else:
                stored = [~flags for flags in visual]
        columns = [self._forward.past + index for index in rows.index]
        bias = [self._sink_bias(example, flags) for example, flags in enumerate(visual)] if routing.sink else None
        return Incoming(rows.spans(), columns, stored, self._forward.seq, transform, bias)

    def _sink_bias(self, example: int, visual: Tensor) -> Tensor:
        """`[n]`: log(n_v) on the sink, for it stands for the mass of all n_v visual rows."""
        count = max(1, int(self._is_visual[example][self.rows.index[example]].sum()))
        return visual.float() * math.log(count)

    # ---- attention --------------------------------------------------------------------------------------------

    def attend(
        self, layer: int, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One layer's attention, then the pruner's look at it."""
        q, k, v = qkv
        if not self._packed:
            output, weights = self._kernel(module, q, k, v, mask, **kwargs)
            for example, trace in enumerate(self.examples):
                trace.work[layer].attention_pairs += q.shape[-2] * k.shape[-2]
                self._observe(layer, example, kwargs, *self._host_view(example, q, k, v, mask))
            return output, weights
        outputs = []
        for example, span in enumerate(self._attention_rows.spans()):
            part = (q[:, :, span], k[:, :, span], v[:, :, span])
            outputs.append(self._attend_example(layer, example, module, part, kwargs))
        return torch.cat(outputs, dim=1), None

    def _attend_example(self, layer: int, example: int, module: nn.Module, qkv: Any, kwargs: Any) -> Tensor:
        q, k, v = qkv
        rows = self._attention_rows.index[example]
        visual, columns = self._is_visual[example][rows], rows + self._forward.past
        bias = self._sink_bias(example, visual) if self._routing.sink and bool(visual.any()) else None
        if self._past is not None and self._past[example][2].numel():
            old_k, old_v, old_columns, old_bias = self._past[example]
            k, v = torch.cat([old_k[None], k], -2), torch.cat([old_v[None], v], -2)
            columns = torch.cat([old_columns, columns])
            visual_keys = torch.cat([torch.zeros_like(old_columns, dtype=torch.bool), visual])
            bias = torch.cat([old_bias, torch.zeros_like(rows) if bias is None else bias])
            bias = bias if bool(bias.any()) else None
        else:
            visual_keys = visual
        work = self.examples[example].work[layer]
        output = None
        for name, members, edge in self._groups(rows, visual):
            if members is not None and not members.numel():
                continue
            part_k, part_v, kept = edge_keys(edge, k, v, visual_keys)
            part_rows = rows if members is None else rows[members]
            part_columns = columns if kept is None else columns[kept]
            part_bias = bias if bias is None or kept is None else bias[kept]
            edges, dead = self._edges(example, f"{name}:{edge}", part_rows, part_columns, part_bias, q.dtype)
            part_q = q if members is None else q[:, :, members]
            work.attention_pairs += part_rows.numel() * part_columns.numel()
            if part_columns.numel():
                part = call_kernel(self._kernel, module, (part_q, part_k, part_v), edges, kwargs)
            else:  # nothing to attend to: an image that opens the prompt
                part = v.new_zeros(1, part_rows.numel(), q.shape[1], v.shape[-1])
            if dead is not None:
                part = part.masked_fill(dead[None, :, None, None], 0)
            if members is None:
                output = part
                break
            if output is None:
                output = part.new_zeros(1, len(rows), *part.shape[2:])
            output = output.index_copy(1, members, part)
        assert output is not None
        token_columns = visual_keys.nonzero().flatten()
        allowed = self._allowed(example, rows[-1:], columns)[0]
        self._observe(layer, example, kwargs, q[0, :, -1], k[0], v[0], token_columns, allowed)
        return output

    def _groups(self, rows: Tensor, visual: Tensor) -> list[tuple[str, Tensor | None, Any]]:
        """Rows of an example by the edge they have to visual keys; None stands for all rows together."""
        routing = self._routing
        if routing.is_plain or not routing.visual_rows_attend or not bool(visual.any()):
            return [("all", None, "attend")]
        later = rows >= self._forward.prompt_end if routing.prompt_only else torch.zeros_like(visual)
        return [
            ("text", (~visual & ~later).nonzero().flatten(), routing.text_to_visual),
            ("visual", visual.nonzero().flatten(), routing.visual_to_visual),
            ("later", later.nonzero().flatten(), "attend"),
        ]

    def _edges(
        self, example: int, name: str, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
    ) -> tuple[tuple[Tensor | None, bool], Tensor | None]:
        """(mask, is_causal) for a group of rows, remembered over layers; and the rows that see nothing, if any."""
        key = (example, name, id(self._host_mask))
        known = self._masks.get(key)
        if known is not None and known[0] is self._attention_rows and self._past is None and bias is None:
            return known[2]  # type: ignore[return-value]
        allowed = self._allowed(example, rows, columns)
        dead = ~allowed.any(-1)
        result = edge_mask(allowed, bias, self._eager, dtype), dead if bool(dead.any()) else None
        self._masks[key] = (self._attention_rows, self._host_mask, result)  # type: ignore[assignment]
        return result

    def _allowed(self, example: int, rows: Tensor, columns: Tensor) -> Tensor:
        """`[rows, columns]` bool: what the host's own mask lets host rows see of logical columns."""
        mask, forward = self._host_mask, self._forward
        causal = columns[None] <= rows[:, None] + forward.past
        if mask is None:
            return causal
        places = columns - (forward.past + forward.seq - mask.shape[-1])
        inside = places >= 0
        picked = mask[example if mask.shape[0] > 1 else 0]
        if mask.ndim == 2:  # flash kernels are given the padding only
            return causal & inside & picked[places.clamp(min=0)].bool()
        picked = picked[0, rows][:, places.clamp(min=0)]
        return _is_open(picked) & inside

    # ---- the pruner's look ------------------------------------------------------------------------------------

    def _host_view(self, example: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Any, ...]:
        last = int(self._layouts[example].real[-1]) if len(self._layouts[example].real) else 0
        new = k.shape[-2] - self._forward.seq
        columns = new + self._layouts[example].visual
        allowed = None
        if mask is not None:
            row = mask[example if mask.shape[0] > 1 else 0]
            allowed = row[-k.shape[-2] :].bool() if mask.ndim == 2 else _is_open(row[0, last])
        return q[example, :, last], k[example], v[example], columns, allowed

    def _observe(
        self, layer: int, example: int, kwargs: Any, q: Tensor, k: Tensor, v: Tensor, visual: Tensor, allowed: Any
    ) -> None:
        run, present = self.runs[example], self._present[example]
        if not present.numel() or not self._routing.visual_rows_attend or not run.observes(layer):
            return
        scaling = kwargs.get("scaling") or q.shape[-1] ** -0.5
        view = LayerView(q, k, v, visual, scaling, allowed)
        kept = run.select(layer, view)
        self.examples[example].work[layer].score_pairs += view.pairs
        if kept is not None and kept.numel() < present.numel():
            self._present[example] = present[kept]
            self._pending = True

    # ---- trace ------------------------------------------------------------------------------------------------

    def _record(self, cache_layer: Any) -> None:
        incoming = cache_layer.incoming if isinstance(cache_layer, PrunedLayer) else None
        for example, trace in enumerate(self.examples):
            real = self.rows.lengths[example]
            attend = self._attention_rows.lengths[example]
            padding = 0 if self._packed else self._forward.seq - real
            stored = incoming.stored[example] if incoming is not None else None
            new_keys = attend if stored is None else int(stored.sum())
            past = self._forward.past_real[example]
            if isinstance(cache_layer, PrunedLayer):
                past = cache_layer.held_rows(example)
            trace.kept.append(self._present[example].tolist())
            trace.query_lengths.append(real)
            trace.key_lengths.append(past + new_keys)
            trace.work.append(LayerWork(real + padding, attend + padding, attend + padding))


def _flags(rows: Tensor, length: int) -> Tensor:
    flags = torch.zeros(length, dtype=torch.bool, device=rows.device)
    flags[rows] = True
    return flags


def _is_open(mask: Tensor) -> Tensor:
    """Bool from a bool or an additive mask."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _values_of(routing: Routing, visual: Tensor) -> Any:
    return lambda values: edge_values(routing.text_to_visual, values, visual)
