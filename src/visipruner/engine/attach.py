"""Attaching a pruner to a stock transformers model, and taking it off again without a trace."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from visipruner.adapters import Adapter, adapter_for
from visipruner.adapters.base import submodule
from visipruner.engine import attention
from visipruner.engine.cache import PrunedLayer
from visipruner.engine.replay import ReplayRun
from visipruner.engine.session import Forward, PromptSession
from visipruner.engine.trace import ExampleTrace, LayerWork, PruneTrace
from visipruner.errors import LayoutError, UnsupportedModelError, VisiPrunerError
from visipruner.layout import VisualRows, check_visual_mask, layouts, mask_for_forward
from visipruner.pruners.base import PromptRun, Pruner
from visipruner.shape import ModelShape

_ATTACHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(
    model: nn.Module, pruner: Pruner, visual_mask: Tensor | None = None, *, adapter: Adapter | None = None
) -> PruneHandle:
    """Makes `model` prune visual tokens until the handle is removed.

    Args:
        model: a stock transformers model: a multimodal one, or a text decoder that is called with `inputs_embeds`.
        pruner: the method, for example `VisiPruner()`.
        visual_mask: `[batch, seq]` bool, True on the visual rows of the prompt. Needed for text decoders and for
            multimodal models called with ready-made `inputs_embeds`; others find their visual rows by themselves.
        adapter: describes a family this library does not know.

    Returns:
        A handle, usable as a context manager, with `.remove()` and `.trace`.

    Raises:
        UnsupportedModelError: the model's family or attention implementation is not supported.
        LayoutError: the mask is malformed, or missing where it is needed.
        ConfigError: the pruner's settings do not fit the model.
        VisiPrunerError: the model has a pruner attached already.
    """
    return PruneHandle(model, pruner, visual_mask, adapter)


class PruneHandle:
    """A pruner attached to a model. `trace` tells what happened to the last prompt(s); `remove()` detaches."""

    def __init__(self, model: nn.Module, pruner: Pruner, visual_mask: Tensor | None, adapter: Adapter | None) -> None:
        self.pruner = pruner
        self.is_attached = False
        self._adapter = adapter or adapter_for(model.config)
        self._decoder, self._layers = _decoder(model, self._adapter)
        self._embedder = submodule(model, self._adapter.embedder)
        if visual_mask is None and self._adapter.locate is None:
            raise LayoutError(
                f"A text decoder ({model.config.model_type}) does not say which rows are visual; pass "  # type: ignore[union-attr]
                "attach(model, pruner, visual_mask=mask) with a [batch, seq] bool mask."
            )
        self._visual_mask = None if visual_mask is None else check_visual_mask(visual_mask)
        self._attentions = [getattr(layer, self._adapter.attention) for layer in self._layers]
        self._implementation: str = self._decoder.config._attn_implementation  # type: ignore[union-attr, assignment]
        self._shape = ModelShape.from_config(self._decoder.config)
        pruner.check(len(self._layers))
        if self._decoder in _ATTACHED:
            raise VisiPrunerError("This model has a pruner attached already; call .remove() on its handle first.")
        name = attention.register(self._implementation)
        self._kernel = attention.host_kernel(self._attentions[0], self._implementation)

        self._session: PromptSession | None = None
        self._found: VisualRows | None = None
        self._trace: PruneTrace | None = None
        self._uncached: tuple[Tensor, list[list[list[int]]]] | None = None
        self._hooks = self._install()
        for layer, module in enumerate(self._attentions):
            attention.own(module, self, layer)
        self._configs = list({id(c): c for c in (self._decoder.config, *(m.config for m in self._attentions))}.values())
        for config in self._configs:
            config._attn_implementation = name
        _ATTACHED.add(self._decoder)
        self.is_attached = True

    @property
    def trace(self) -> PruneTrace:
        """What happened to the last prompt(s). Raises VisiPrunerError before the first."""
        if self._trace is None:
            raise VisiPrunerError("There is no trace yet: run the model on a prompt first.")
        return self._trace

    def remove(self) -> None:
        """Restores the model: hooks, config and attention implementation are what they were. Safe to call twice."""
        if not self.is_attached:
            return
        for hook in self._hooks:
            hook.remove()
        for config in self._configs:
            config._attn_implementation = self._implementation
        for module in self._attentions:
            attention.disown(module)
        _ATTACHED.discard(self._decoder)
        self._session, self._uncached, self.is_attached = None, None, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    # ---- hooks ------------------------------------------------------------------------------------------------

    def _install(self) -> list[Any]:
        hooks: list[Any] = []
        if self._embedder is not None and self._embedder is not self._decoder:
            hooks.append(self._embedder.register_forward_pre_hook(self._locate, with_kwargs=True))
        hooks.append(self._decoder.register_forward_pre_hook(self._begin, with_kwargs=True))
        hooks.append(self._decoder.register_forward_hook(self._end, always_call=True))
        for layer, module in enumerate(self._layers):
            hooks.append(module.register_forward_pre_hook(self._layer_hook(layer), with_kwargs=True))
            hooks += self._install_routing(layer)
        hooks.append(self._layers[-1].register_forward_hook(self._leave_layers))
        return hooks

    def _install_routing(self, layer: int) -> list[Any]:
        """Hooks only where the pruner's routing lets a layer's attention, or a part of it, run on fewer rows."""
        routing, module = self.pruner.routing(layer), self._attentions[layer]
        if not routing.visual_rows_attend:
            return [
                module.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
                module.register_forward_hook(self._leave_attention),
            ]
        if routing.is_plain:
            return []
        projections = [getattr(module, name, None) for name in self._adapter.key_value]
        return [
            hook
            for projection in projections
            if isinstance(projection, nn.Module)
            for hook in (
                projection.register_forward_pre_hook(self._enter_projection),
                projection.register_forward_hook(self._leave_projection),
            )
        ]

    def _locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the multimodal model embeds its inputs: which rows will be visual."""
        assert self._adapter.locate is not None
        self._found = self._adapter.locate(module, _bound(module, args, kwargs))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the decoder runs: a session, if this forward brings visual rows."""
        self._session = None  # one left by an interrupted forward is of no use
        call = _bound(module, args, kwargs)
        rows = call.get("inputs_embeds")
        rows = call.get("input_ids") if rows is None else rows
        if rows is None:
            return
        batch, seq = rows.shape[:2]
        cache = call.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        visual = self._visual_rows(batch, past, seq, cached=cache is not None)
        padding = call.get("attention_mask")
        real = torch.ones(batch, past + seq, dtype=torch.bool, device=rows.device)
        if isinstance(padding, Tensor) and padding.ndim == 2 and padding.shape[1] >= past + seq:
            real = padding[:, : past + seq].bool()
        if visual is None or not bool(visual.mask.any()):
            if past == 0:
                self._trace = self._plain_trace(real.sum(1).tolist(), seq)
            return
        found = layouts(VisualRows(visual.mask.to(rows.device), visual.grid), real[:, past:])
        runs: list[PromptRun] = [self.pruner.start() for _ in found]
        prompt_end = seq
        if self._repeats_prompt(call, cache):
            assert self._uncached is not None
            runs = [ReplayRun(kept) for kept in self._uncached[1]]
            prompt_end = self._uncached[0].shape[1]
        forward = Forward(seq, past, real[:, :past].sum(1).tolist(), prompt_end)
        eager = self._implementation == "eager"
        self._session = PromptSession(self.pruner, self._kernel, eager, weakref.ref(self), found, runs, forward)
        self._call = call

    def _visual_rows(self, batch: int, past: int, seq: int, cached: bool) -> VisualRows | None:
        found, self._found = self._found, None
        if self._visual_mask is not None:
            return VisualRows(mask_for_forward(self._visual_mask, batch, past, seq, cached))
        if found is None and past == 0:
            raise LayoutError(
                "The model was called with inputs_embeds, which do not say which rows are visual; pass input_ids with "
                "pixel_values, or attach with visual_mask."
            )
        return found

    def _repeats_prompt(self, call: Mapping[str, Any], cache: Any) -> bool:
        """Whether this forward without a cache continues the last prompt, whose selections then still hold."""
        embeds = call.get("inputs_embeds")
        if cache is not None or self._uncached is None or embeds is None:
            return False
        before = self._uncached[0]
        return (
            embeds.shape[0] == before.shape[0]
            and embeds.shape[1] > before.shape[1]
            and torch.equal(embeds[:, : before.shape[1]], before)
        )

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """After the decoder, also when it failed."""
        session, self._session = self._session, None
        if session is None or output is None:
            return
        replayed = isinstance(session.runs[0], ReplayRun)
        if not replayed:
            self._trace = PruneTrace(self._shape, session.examples, self._decoder_dtype().itemsize)
            embeds = self._call.get("inputs_embeds")
            cached = self._call.get("past_key_values") is not None
            self._uncached = None if cached or embeds is None else (embeds, self._trace.kept)
        self._call = {}

    def _layer_hook(self, layer: int) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._session is None:
                return self._decode(layer, args, kwargs)
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden, kwargs = self._session.enter_layer(layer, hidden, kwargs)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return enter

    def _decode(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A forward without visual rows: only what the cache holds decides what its mask must cover."""
        cache = kwargs.get("past_key_values")
        if cache is None or layer >= len(cache.layers):
            return None
        held = cache.layers[layer]
        if not isinstance(held, PrunedLayer):
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
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
        hidden, kwargs = self._session.enter_attention(hidden, kwargs)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _leave_attention(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._session is None or not self._session.attends_partly:
            return None
        return (self._session.leave_attention(output[0]), *output[1:])

    def _enter_projection(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self._session is None else self._session.enter_projection(args[0])

    def _leave_projection(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        return None if self._session is None else self._session.leave_projection(output)

    def attend(
        self, layer: int, module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Called by the attention of every attached layer."""
        if self._session is None:
            return self._kernel(module, *qkv, mask, **kwargs)
        return self._session.attend(layer, module, qkv, mask, kwargs)

    def _decoder_dtype(self) -> torch.dtype:
        return next(self._decoder.parameters()).dtype

    def _plain_trace(self, lengths: list[int], seq: int) -> PruneTrace:
        """The record of prompts without an image: nothing to prune, everything ran."""
        layers = len(self._layers)
        examples = [
            ExampleTrace(
                prompt_length=length,
                num_visual=0,
                kept=[[] for _ in range(layers + 1)],
                query_lengths=[length] * layers,
                visual_attention=[True] * layers,
                key_lengths=[length] * layers,
                work=[LayerWork(seq, seq, seq, seq * seq) for _ in range(layers)],
            )
            for length in lengths
        ]
        return PruneTrace(self._shape, examples, self._decoder_dtype().itemsize)


def _decoder(model: nn.Module, adapter: Adapter) -> tuple[nn.Module, nn.ModuleList]:
    for path in adapter.decoder:
        decoder = submodule(model, (path,))
        layers = getattr(decoder, adapter.layers, None)
        if isinstance(decoder, nn.Module) and isinstance(layers, nn.ModuleList) and len(layers):
            return decoder, layers
    raise UnsupportedModelError(
        f"No text decoder was found in {type(model).__name__} (looked at {', '.join(adapter.decoder)}); load it with "
        "AutoModelForImageTextToText or AutoModelForCausalLM."
    )


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    """A call's arguments by name."""
    if not args:
        return kwargs
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    return {**bound.arguments, **bound.arguments.get("kwargs", {})}
