"""What happens at each point of a host model's forward: the hooks, and the session they carry a prompt with."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from visipruner.contract.layout import TokenLayout, VisualRows, is_in_line, layouts, mask_for_forward
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.routing import Needed
from visipruner.contract.training_run import TrainingPruner
from visipruner.engine.added import AddedFeatures
from visipruner.engine.arguments import bound, brings_pixels, cache_of
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.frame import FRAME
from visipruner.engine.host import Host
from visipruner.engine.image_cache import ImageCache, SharedPrefix
from visipruner.engine.per_thread import PerThread, Threads
from visipruner.engine.refusals import uncompiled
from visipruner.engine.replay import ReplayRun, Uncached
from visipruner.engine.routed import QKV
from visipruner.engine.session import Forward, PromptSession
from visipruner.engine.trace import PruneTrace, plain_trace
from visipruner.engine.vision import Vision, VisionTap, read_tower
from visipruner.errors import LayoutError, UnsupportedModelError, VisiPrunerError


class Hooks:
    """The engine of one attached model. What belongs to a forward, or to `generate` without a cache, is its thread's.

    Attributes:
        is_attached: False once the handle was removed; pruned caches refuse to go on then.
    """

    _session = PerThread[PromptSession | None](lambda: None)
    _found = PerThread[Tensor | None](lambda: None)
    _call = PerThread[Mapping[str, Any]](dict)
    # Forwards without a cache: the last one, and the one that is running.
    _uncached = PerThread[Uncached | None](lambda: None)
    _running = PerThread[Uncached | None](lambda: None)
    _is_projecting = PerThread[bool](bool)
    _spares_queries = PerThread[bool](bool)
    _query_rows = PerThread[int](int)

    def __init__(self, host: Host, pruner: Pruner, visual_mask: Tensor | None, tap: VisionTap | None = None) -> None:
        self._host, self._pruner, self._visual_mask, self._tap = host, pruner, visual_mask, tap
        self.threads, self._traces = Threads(), _Traces()
        self.is_attached = True
        self._image_cache: ImageCache | None = None

    @property
    def trace(self) -> PruneTrace | None:
        """What happened to the last prompt(s) of this thread, or of any where this one ran none; None before the
        first."""
        return self._traces.of_any if self._traces.own is None else self._traces.own

    @trace.setter
    def trace(self, trace: PruneTrace) -> None:
        self._traces.own = self._traces.of_any = trace

    def detach(self) -> None:
        """Lets go of everything that belongs to a forward, in every thread; traces stay."""
        self.is_attached = False
        self.threads = Threads()

    def install(self) -> Iterator[RemovableHandle]:
        """Registers hook after hook; none costs a text-only prompt more than a Python call per layer."""
        host = self._host
        yield host.decoder.register_forward_pre_hook(uncompiled(self._begin), with_kwargs=True)
        yield host.decoder.register_forward_hook(uncompiled(self._end), always_call=True)
        if host.embedder is not None:
            yield host.embedder.register_forward_pre_hook(uncompiled(self._locate), with_kwargs=True)
            if self._tap is not None:
                yield host.embedder.register_forward_hook(uncompiled(self._tap.leave), always_call=True)
        for layer, module in enumerate(host.layers):
            yield module.register_forward_pre_hook(self._layer_hook(layer), with_kwargs=True)
            yield from self._install_routing(layer)
            if isinstance(self._pruner, TrainingPruner):
                yield module.register_forward_hook(self._blend_hook(layer), with_kwargs=True)
        yield host.layers[-1].register_forward_hook(self._leave_layers)

    def _install_routing(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks only where the pruner's routing lets a layer's attention, or a part of it, run on fewer rows."""
        routing, module = self._pruner.routing(layer), self._host.attentions[layer]
        if routing.freezes_visual and self._host.has_query_maps:
            queries = getattr(module, self._host.adapter.query)
            yield queries.register_forward_pre_hook(self._enter_queries)
            yield queries.register_forward_hook(self._leave_queries)
            return
        if not routing.visual_rows_attend:
            yield module.register_forward_pre_hook(self._enter_attention, with_kwargs=True)
            yield module.register_forward_hook(self._leave_attention)
            return
        for name, needed in zip(
            self._host.adapter.key_value, (routing.visual_keys, routing.visual_values), strict=True
        ):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Module) and needed != "all":
                yield projection.register_forward_pre_hook(partial(self._enter_projection, needed))
                yield projection.register_forward_hook(partial(self._leave_projection, needed))

    # ---- around the decoder -------------------------------------------------------------------------------------

    def _locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the multimodal model embeds its inputs: which rows will be visual."""
        assert self._host.adapter.locate is not None
        self._call = bound(module, args, kwargs)
        self._found = self._host.adapter.locate(module, self._call)
        if self._tap is not None and brings_pixels(self._call):
            self._tap.clear()  # of images whose forward was interrupted, or that were encoded for no prompt

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder runs: a session, if this forward brings visual rows."""
        self._session = self._running = None  # those left by an interrupted forward are of no use
        if self._tap is not None:
            self._tap.spend()
        before, self._uncached = self._uncached, None
        outer, self._call = self._call, {}
        call = bound(module, args, kwargs)
        embeds, cache = call.get("inputs_embeds"), call["cache"]
        rows = call.get("input_ids") if embeds is None else embeds
        if rows is None:
            return None  # the host has a better word for this than we do
        batch, seq = rows.shape[:2]
        past = int(cache.get_seq_length()) if cache is not None else 0
        visual = self._visual_rows(batch, past, seq, {**outer, **call})
        real = _real_rows((call.get("attention_mask"), outer.get("attention_mask")), batch, past + seq, rows.device)
        if visual is None or not bool(visual.mask.any()):
            if past == 0:
                self.trace = plain_trace(self._host.shape, real.sum(1).tolist(), seq, self._host.dtype.itemsize)
            return None
        asked = {**outer, **call}.get("output_attentions", getattr(self._host.configs[0], "output_attentions", False))
        wants_maps = bool(asked) and self._host.is_eager  # other implementations have no maps to give
        in_line = is_in_line(call.get("position_ids"), real[:, past:])
        # While learning, equal beginnings are chance, and embeddings would hold on to their graph.
        if cache is None and embeds is not None and not torch.is_grad_enabled():
            again = None if before is None else before.continued_by(embeds)
            self._running = again or Uncached(embeds, seq)
        self._session = self._started(embeds, cache is not None, past, visual, real, wants_maps, in_line)
        names = self._host.adapter.added_features
        if names is None or kwargs.get(names[1]) is None:
            return None
        self._session.take_features(AddedFeatures(*(kwargs[name] for name in names)))
        return args, {**kwargs, **dict.fromkeys(names)}

    def _started(
        self,
        embeds: Tensor | None,
        is_cached: bool,
        past: int,
        visual: VisualRows,
        real: Tensor,
        wants_maps: bool,
        in_line: bool,
    ) -> PromptSession:
        """A session for the rows after `past`, `embeds` `[batch, seq, d]`."""
        seq = real.shape[1] - past
        prompt_end = seq if self._running is None else self._running.prompt_end
        found = layouts(VisualRows(visual.mask.to(real.device), visual.images), real[:, past:], prompt_end)
        vision: list[Vision | None] = [None] * len(found)
        runs: list[PromptRun] = [self._pruner.begin(in_line) for _ in found]
        if self._running is not None and self._running.runs:
            runs = list(self._running.runs)
        elif self._tap is not None:
            found, vision = read_tower(self._tap, found)
        forward = Forward(seq, past, real[:, :past].sum(1).tolist(), prompt_end, wants_maps)
        owner = weakref.ref(self)
        shared = None if past or wants_maps or not is_cached else self._shared_prefix(embeds, found)
        return PromptSession(self._pruner, self._host, owner, found, runs, forward, self._run_ahead, vision, shared)

    def _shared_prefix(self, embeds: Tensor | None, found: Sequence[TokenLayout]) -> SharedPrefix | None:
        """What is known of a prompt's rows up to the end of its image, under an image cache."""
        if self._image_cache is None or embeds is None or torch.is_grad_enabled() or not len(found[0].visual):
            return None
        if len(found) != 1:
            raise VisiPrunerError(
                "Under image_cache() prompts are read one at a time; pass one example and no beams, or leave it out."
            )
        return SharedPrefix(self._image_cache, embeds, int(found[0].visual[-1]) + 1)

    @contextmanager
    def image_cache(self, cache: ImageCache) -> Iterator[None]:
        """Lets prompts share what `cache` knows of their image. Raises UnsupportedModelError, VisiPrunerError."""
        if self._image_cache is not None:
            raise VisiPrunerError("This handle has an image cache already; leave its context first.")
        waits = any(self._pruner.routing(layer).freezes_visual for layer in range(len(self._host.layers)))
        if isinstance(self._pruner, TrainingPruner) or self._pruner.first_layer() or waits:
            raise UnsupportedModelError(
                f"{self._pruner.name} with these settings changes visual rows as image_cache() cannot share; "
                "leave it out."
            )
        cache.bind((weakref.ref(self._host.decoder), self._pruner, self._host.implementation))
        self._image_cache = cache
        # A method that looks into the vision tower must see it run.
        embedder = self._host.embedder if self._tap is None else None
        try:
            with nullcontext() if embedder is None else cache.remembering(embedder):
                yield
        finally:
            self._image_cache = None

    def _visual_rows(self, batch: int, past: int, seq: int, call: Mapping[str, Any]) -> VisualRows | None:
        found, self._found = self._found, None
        if self._visual_mask is not None:
            cached = call["cache"] is not None
            return VisualRows(mask_for_forward(self._visual_mask, batch, past, seq, cached))
        if found is None:
            if past == 0:
                raise LayoutError(
                    "The model was called with inputs_embeds, which do not say which rows are visual; pass input_ids "
                    "with pixel_values, or attach with visual_mask."
                )
            return None
        assert self._host.embedder is not None
        return self._host.adapter.arranged(self._host.embedder, call, found)

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the decoder, also when it failed (without output)."""
        session, self._session = self._session, None
        uncached, self._running = self._running, None
        if self._tap is not None:
            self._tap.clear()
        if session is None or output is None:
            return
        self._uncached = uncached
        if uncached is not None and uncached.runs:
            return
        trace = self.trace = PruneTrace(self._host.shape, session.examples, self._host.dtype.itemsize)
        replays = zip(trace.kept, session.merged, session.closed, strict=True)
        if uncached is not None:
            self._uncached = replace(uncached, runs=[ReplayRun(*decided) for decided in replays])

    # ---- around a layer -------------------------------------------------------------------------------------------

    def _layer_hook(self, layer: int) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if self._session is None:
                return self._decode(layer, hidden, args, kwargs)
            return _with_hidden(args, *self._session.enter_layer(layer, hidden, kwargs))

        return enter

    def _blend_hook(self, layer: int) -> Any:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if self._session is None:
                return None
            hidden = args[0] if args else kwargs["hidden_states"]
            if isinstance(output, tuple):
                return (self._session.blend(layer, hidden, output[0]), *output[1:])
            return self._session.blend(layer, hidden, output)

        return leave

    def _run_ahead(
        self, layer: int, hidden: Tensor, kwargs: dict[str, Any], keys_only: bool = False
    ) -> tuple[QKV, Any]:
        """Runs a layer up to its attention on some rows: queries, keys, values as attention would be given them."""
        session, self._session = self._session, None
        self._is_projecting, self._spares_queries = True, keys_only
        try:
            self._host.layers[layer].forward(hidden, **kwargs)
        except _ProjectedError as projected:
            return projected.qkv, projected.kwargs
        finally:
            self._session, self._is_projecting, self._spares_queries = session, False, False
        raise UnsupportedModelError(f"Layer {layer} has no attention of its own whose queries could be read.")

    def _decode(self, layer: int, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A forward without visual rows: only what the cache holds decides what the layer's mask must cover."""
        cache = cache_of(kwargs)
        held = cache.layers[layer] if cache is not None and layer < len(cache.layers) else None
        if not isinstance(held, PrunedLayer):
            return None
        mask = held.narrow_mask(kwargs.get("attention_mask"), hidden.shape[1], hidden.dtype)
        return args, {**kwargs, "attention_mask": mask}

    def _leave_layers(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._session is None:
            return None
        if isinstance(output, tuple):
            return (self._session.leave_layers(output[0]), *output[1:])
        return self._session.leave_layers(output)

    def _enter_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._session is None or not self._session.attends_partly:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        return _with_hidden(args, *self._session.enter_attention(hidden, kwargs))

    def _leave_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._session is None or not self._session.attends_partly:
            return None
        return (self._session.leave_attention(output[0]), *output[1:])

    def _enter_projection(self, needed: Needed, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self._session is None else self._session.enter_projection(needed, args[0])

    def _leave_projection(self, needed: Needed, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        return None if self._session is None else self._session.leave_projection(needed, output)

    def _enter_queries(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Rows that only give keys and values need no query."""
        if not self._spares_queries:
            return None
        self._query_rows = args[0].shape[-2]
        return args[0][..., :0, :]

    def _leave_queries(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        if not self._spares_queries:
            return None
        return output.new_zeros(*output.shape[:-2], self._query_rows, output.shape[-1])

    def attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Called by the attention of every attached layer."""
        frame = kwargs.pop(FRAME, None)
        if self._is_projecting:
            raise _ProjectedError(qkv, kwargs)
        if frame is not None:
            return frame.attend(module, qkv, kwargs), None
        if self._session is None:
            return self._host.kernel(module, *qkv, mask, **kwargs)
        return self._session.attend(layer, module, qkv, mask, kwargs)


class _Traces:
    """Attributes: `own`, what happened to the last prompt(s) of this thread; `of_any`, to the last of all threads."""

    own = PerThread[PruneTrace | None](lambda: None)

    def __init__(self) -> None:
        self.threads = Threads()
        self.of_any: PruneTrace | None = None


class _ProjectedError(Exception):
    """Leaves a layer as soon as its queries, keys and values are there."""

    def __init__(self, qkv: QKV, kwargs: Any) -> None:
        self.qkv, self.kwargs = qkv, kwargs


def _with_hidden(args: tuple[Any, ...], hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A call with other hidden states, given the way the host gave them."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _real_rows(paddings: tuple[Any, ...], batch: int, length: int, device: torch.device) -> Tensor:
    """`[batch, length]` bool: rows that are not padding, as the first 2-D attention mask says; all rows without one.

    Some models give their decoder whole maps instead (attention in both directions within an image); what is padding
    is then known from the mask that they were given themselves.
    """
    for padding in paddings:
        if isinstance(padding, Tensor) and padding.ndim == 2 and padding.shape[1] >= length:
            return padding[:, :length].bool().to(device)
    return torch.ones(batch, length, dtype=torch.bool, device=device)
