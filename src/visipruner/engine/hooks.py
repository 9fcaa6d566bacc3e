"""PyTorch's callbacks: what happens at each point of a host model's forward, handed to the session of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from visipruner.contract.pruner import Pruner
from visipruner.contract.routing import Needed
from visipruner.contract.training_run import TrainingPruner
from visipruner.engine.attention import QKV, uncompiled
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.calls import by_name, cache_of
from visipruner.engine.clock import EngineClock
from visipruner.engine.host import Host
from visipruner.engine.layer_plan import PLAN
from visipruner.engine.opening import Opening
from visipruner.engine.recall import Answering
from visipruner.engine.replay import ReplayRun, Uncached
from visipruner.engine.session import PromptSession
from visipruner.engine.states import no_attention
from visipruner.engine.static import StaticRows
from visipruner.engine.threads import PerThread, Threads
from visipruner.engine.trace import PruneTrace
from visipruner.engine.vision import VisionTap
from visipruner.errors import UnsupportedModelError


class Hooks:
    """The engine of one attached model. What belongs to a forward is its thread's.

    Attributes:
        opening: makes sessions of the decoder's calls.
        is_attached: False once the handle was removed; pruned caches refuse to go on then.
    """

    _session = PerThread[PromptSession | None](lambda: None)
    _answering = PerThread[Answering | None](lambda: None)
    _narrowed = PerThread[dict[Any, Any]](dict)
    _is_projecting = PerThread[bool](bool)
    _spares_queries = PerThread[bool](bool)
    _query_rows = PerThread[int](int)

    def __init__(
        self,
        host: Host,
        pruner: Pruner,
        visual_mask: Tensor | None,
        tap: VisionTap | None = None,
        clock: EngineClock | None = None,
    ) -> None:
        self._timed: Callable[[Any], Any] = _as_it_is
        if clock is not None:
            host, self._timed = replace(host, kernel=clock.kernel.timed(host.kernel)), clock.engine.timed
        self._host, self._pruner, self._tap = host, pruner, tap
        self.opening = Opening(host, pruner, visual_mask, tap, clock)
        self.threads, self._traces = Threads(), _Traces()
        self.is_attached = True

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
        self.threads = self.opening.threads = Threads()

    def install(self, model: nn.Module) -> Iterator[RemovableHandle]:
        """Registers hook after hook; none costs a text-only prompt more than a Python call per layer."""
        host = self._host
        if model is not host.decoder:
            yield model.register_forward_pre_hook(uncompiled(self.opening.take_labels), with_kwargs=True)
        if host.embedder is not None:
            yield host.embedder.register_forward_pre_hook(
                uncompiled(self._timed(self.opening.locate)), with_kwargs=True
            )
            if self._tap is not None:
                yield host.embedder.register_forward_hook(uncompiled(self._tap.leave), always_call=True)
        yield host.decoder.register_forward_pre_hook(uncompiled(self._timed(self._begin)), with_kwargs=True)
        yield host.decoder.register_forward_hook(uncompiled(self._timed(self._end)), always_call=True)
        for layer, module in enumerate(host.layers):
            yield module.register_forward_pre_hook(self._timed(self._layer_hook(layer)), with_kwargs=True)
            yield from self._install_routing(layer)
            if isinstance(self._pruner, TrainingPruner):
                yield module.register_forward_hook(self._blend_hook(layer), with_kwargs=True)
        yield host.layers[-1].register_forward_hook(self._timed(self._leave_layers))

    def _install_routing(self, layer: int) -> Iterator[RemovableHandle]:
        """Hooks only where the pruner's routing lets a layer's attention, or a part of it, run on fewer rows."""
        routing, module = self._pruner.routing(layer), self._host.attentions[layer]
        if layer in self._host.states:
            yield module.register_forward_pre_hook(self._timed(self._enter_states), with_kwargs=True)
            yield module.register_forward_hook(self._timed(self._leave_states))
            return
        if routing.freezes_visual and self._host.has_query_maps:
            queries = getattr(module, self._host.adapter.query)
            yield queries.register_forward_pre_hook(self._enter_queries)
            yield queries.register_forward_hook(self._leave_queries)
            return
        if not routing.visual_rows_attend:
            yield module.register_forward_pre_hook(self._timed(self._enter_attention), with_kwargs=True)
            yield module.register_forward_hook(self._timed(self._leave_attention))
            return
        for name, needed in zip(
            self._host.adapter.key_value, (routing.visual_keys, routing.visual_values), strict=True
        ):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Module) and needed != "all":
                yield projection.register_forward_pre_hook(self._timed(partial(self._enter_projection, needed)))
                yield projection.register_forward_hook(self._timed(partial(self._leave_projection, needed)))

    # ---- around the decoder -------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the decoder runs: a session, if this forward brings visual rows."""
        self._session = None  # one left by an interrupted forward is of no use
        self._narrowed.clear()
        session, plain = self.opening.open(self, module, args, kwargs)
        if plain is not None:
            self.trace = plain
        self._session = session
        if self._pruner.recalls:
            self._answering = Answering.of(self._host, args, kwargs) if session is None else None
        added = None if session is None else self.opening.features(kwargs)
        if session is None or added is None:
            return None
        session.take_features(added[0])
        return args, added[1]

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the decoder, also when it failed (without output)."""
        session, self._session, self._answering = self._session, None, None
        uncached, self.opening.running = self.opening.running, None
        self._narrowed.clear()
        if self._tap is not None:
            self._tap.clear()
        if session is not None:
            session.close()
        if session is None or output is None:
            return
        if uncached is not None and uncached.runs:
            self._goes_on(uncached)
            return
        if not self.opening.is_first:
            return
        self.trace = PruneTrace(self._host.shape, session.record.read, self._host.dtype.itemsize)
        if uncached is not None:
            decided = zip(session.record.kept, session.merged, session.closed, strict=True)
            self._goes_on(replace(uncached, runs=[ReplayRun(*each) for each in decided]))

    def _goes_on(self, prompt: Uncached) -> None:
        """Later forwards of this run of `generate` repeat what was decided for its prompt."""
        if self.opening.generation is not None:
            self.opening.generation.prompt = prompt

    # ---- around a layer -------------------------------------------------------------------------------------------

    def _layer_hook(self, layer: int) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            args, kwargs = by_name(module, args, kwargs)
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
            return _changed(output, partial(self._session.blend, layer, hidden))

        return leave

    def run_ahead(self, layer: int, hidden: Tensor, kwargs: dict[str, Any], keys_only: bool = False) -> tuple[QKV, Any]:
        """Runs a layer up to its attention on some rows: queries, keys, values as attention would be given them."""
        if layer in self._host.states:
            raise no_attention(self._host, layer)
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
        if self._answering is not None:
            self._answering.enter_layer(layer, kwargs)
        cache = cache_of(kwargs)
        held = cache.layers[layer] if cache is not None and layer < len(cache.layers) else None
        if not isinstance(held, (PrunedLayer, StaticRows)):
            return None
        mask, form = kwargs.get("attention_mask"), self._host.form
        mask = held.narrow_mask(mask, hidden.shape[1], hidden.dtype, self._narrowed, form)
        return args, {**kwargs, "attention_mask": mask}

    def _leave_layers(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return None if self._session is None else _changed(output, self._session.leave_layers)

    def _enter_states(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._session is None or not self._session.states.are_parted:
            return None
        args, kwargs = by_name(module, args, kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        return _with_hidden(args, *self._session.states.enter(hidden, kwargs))

    def _leave_states(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._session is None or not self._session.states.are_parted:
            return None
        return _changed(output, self._session.states.leave)

    def _enter_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._session is None or not self._session.projection.attends_partly:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        return _with_hidden(args, *self._session.projection.enter_attention(hidden, kwargs))

    def _leave_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._session is None or not self._session.projection.attends_partly:
            return None
        return _changed(output, self._session.projection.leave_attention)

    def _enter_projection(self, needed: Needed, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self._session is None else self._session.projection.enter_projection(needed, args[0])

    def _leave_projection(self, needed: Needed, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        return None if self._session is None else self._session.projection.leave_projection(needed, output)

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
        return self._timed(self._attend)(layer, module, qkv, mask, kwargs)  # type: ignore[no-any-return]

    def _attend(
        self, layer: int, module: nn.Module, qkv: QKV, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        plan = kwargs.pop(PLAN, None)
        if self._is_projecting:
            raise _ProjectedError(qkv, kwargs)
        if plan is not None:
            return plan.attend(module, qkv, kwargs), None
        rows = self._answering if self._session is None else self._session
        if rows is None:
            return self._host.kernel(module, *qkv, mask, **kwargs)
        return rows.attend(layer, module, qkv, mask, kwargs)


def _as_it_is(function: Any) -> Any:
    return function


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


def _changed(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a layer gave, its hidden states changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _with_hidden(args: tuple[Any, ...], hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """A call with other hidden states, given the way the host gave them."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
