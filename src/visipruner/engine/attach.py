"""Attaching a pruner to a stock transformers model, and taking it off again without a trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from visipruner.adapters import Adapter, adapter_of, described
from visipruner.adapters.generic import completed
from visipruner.contract.layout import check_visual_mask
from visipruner.contract.picture import picture_methods
from visipruner.contract.pruner import Pruner
from visipruner.engine.clock import EngineClock
from visipruner.engine.generating import Generating
from visipruner.engine.guards import Refusals, check_cache, stock_model
from visipruner.engine.hooks import Hooks
from visipruner.engine.host import Host
from visipruner.engine.image_cache import ImageCache
from visipruner.engine.patch import Attachment, check_free
from visipruner.engine.recall import check_recall
from visipruner.engine.states import check_states
from visipruner.engine.static import StaticDecoding
from visipruner.engine.trace import PruneTrace
from visipruner.engine.vision import VisionTap, tower_layers
from visipruner.errors import ConfigError, LayoutError, UnsupportedModelError, VisiPrunerError
from visipruner.models import checked


def attach(
    model: nn.Module,
    pruner: Pruner,
    visual_mask: Any = None,
    *,
    adapter: Adapter | None = None,
    clock: EngineClock | None = None,
) -> PruneHandle:
    """Makes `model` prune visual tokens until the handle is removed.

    What is chosen for a prompt holds for the answer: with a cache, and in `generate` also without one. Any other call
    without a cache is a prompt of its own, for which tokens are chosen anew, also where it begins as the last one did.

    A word is read from the row before it, and dropped rows end as zeros. So the last row of an image is no visual token
    where the prompt ends with it, or where the model is given `labels` with one for the text right behind it. Image
    rows themselves should have the label -100: those that are dropped cannot predict their next.

    Args:
        model: a stock transformers model with its head: a multimodal one, or a text decoder that is called with
            `inputs_embeds`. It may be compiled (`torch.compile`) or have adapters (peft).
        pruner: the method, for example `VisiPruner()`.
        visual_mask: `[batch, seq]` bool (tensor, numpy array or lists), True on the visual rows of the prompt.
            Needed for text decoders and for multimodal models called with ready-made `inputs_embeds`; others find
            their visual rows by themselves.
        adapter: describes a family this library does not know. clock: what times the engine, off by default.

    Returns:
        A handle, usable as a context manager, with `.remove()` and `.trace`.

    Raises:
        UnsupportedModelError: the model cannot be pruned, or not by this method, or not with its attention
            implementation; it is no transformers model with its head; the method wants a vision tower it lacks.
        LayoutError: the mask is malformed, or missing where it is needed.
        ConfigError: `pruner` is no method with its settings, these do not fit the model, or it works on the picture.
        VisiPrunerError: the model has a pruner attached already.
    """
    _check_method(pruner)
    model = stock_model(model)
    chosen = _adapter_of(model) if adapter is None else completed(model, adapter)
    visual_mask = None if visual_mask is None else check_visual_mask(visual_mask)
    if visual_mask is None and chosen.locate is None:
        raise LayoutError(
            f"A {chosen.family} does not say which rows are visual; pass attach(model, pruner, visual_mask=mask) "
            "with a [batch, seq] bool mask."
        )
    host = Host.of(model, chosen)
    pruner.check(len(host.layers))
    check_cache(host, pruner)
    check_free(host)
    return PruneHandle(model, host, pruner, visual_mask, _tap(host, pruner), clock)


def _adapter_of(model: nn.Module) -> Adapter:
    """The model's own adapter. Warns of one that nobody described and that did not pass `visipruner check` here."""
    unchecked = None if described(model.config) else checked.warning(model.config)
    if unchecked:
        warnings.warn(unchecked, stacklevel=3)
    return adapter_of(model)


def _check_method(given: Any) -> None:
    """Raises ConfigError for what is no method that can be attached."""
    if isinstance(given, type):
        raise ConfigError(
            f"attach takes a method with its settings: {given.__name__}(...), not the class {given.__name__}."
        )
    if not isinstance(given, Pruner):
        raise ConfigError(
            f"attach takes a method, for instance visipruner.VisiPruner(), not {given!r}; "
            "visipruner.pruners.registry.make_from_spec makes one from its name."
        )
    if picture_methods(given):
        raise ConfigError(
            f"{given.name} makes the picture smaller before there is a prompt, which attach cannot; use "
            "visipruner.chat.attached(model, pruner, chat_inputs(model, processor, picture, question))."
        )


def _tap(host: Host, pruner: Pruner) -> VisionTap | None:
    """What reads the vision tower for a pruner that looks at it."""
    depth = 24 if host.tower is None else len(tower_layers(host.tower))
    wanted = pruner.vision_layers(depth)
    if not wanted:
        return None
    if host.tower is None or host.embedder is None:
        why = host.adapter.no_patches or "nobody said which patches its visual tokens are made of (`Adapter.patches`)"
        raise UnsupportedModelError(
            f"{pruner.name} looks at the vision tower, which says nothing of single tokens in {host.adapter.family}: "
            f"{why}; choose a method that does not need it (`visipruner list`)."
        )
    return VisionTap(host.tower, wanted, host.adapter.patches)


class PruneHandle:
    """A pruner attached to a model, made by `attach`. `trace` tells what happened to the last prompt(s).

    Several threads may run the model at once, each with its own prompts; attaching and removing is for one of them
    while the others wait.
    """

    def __init__(
        self,
        model: nn.Module,
        host: Host,
        pruner: Pruner,
        visual_mask: Tensor | None = None,
        tap: VisionTap | None = None,
        clock: EngineClock | None = None,
    ) -> None:
        check_states(host, pruner)
        check_recall(host, pruner)
        self.pruner = pruner
        self._hooks, self._tap = Hooks(host, pruner, visual_mask, tap, clock), tap
        with ExitStack() as undo:
            self._attachment = Attachment(host, self._hooks, self._hooks.install(model))
            undo.callback(self._attachment.remove)
            self._refusals = Refusals(model, host.decoder)
            undo.callback(self._refusals.remove)
            self._generating = Generating(model, self._hooks.opening)
            undo.callback(self._generating.remove)
            ours = self._attachment.hook_ids
            self._static = StaticDecoding(model, host, pruner, self._hooks.opening, ours)
            undo.callback(self._static.remove)
            if tap is not None:
                undo.callback(tap.remove)
                assert host.embedder is not None
                tap.install(model, host.embedder)
            undo.pop_all()  # only a failure undoes what was done

    @property
    def is_attached(self) -> bool:
        return self._hooks.is_attached

    @property
    def trace(self) -> PruneTrace:
        """What happened to the last prompt(s) of the thread that asks, or of any thread where it ran none itself.

        Raises VisiPrunerError before the first.
        """
        if self._hooks.trace is None:
            raise VisiPrunerError("There is no trace yet: run the model on a prompt first.")
        return self._hooks.trace

    @contextmanager
    def image_cache(self, cache: ImageCache | None = None) -> Iterator[ImageCache]:
        """While it is open, prompts that begin with the same image (the text before it included) share the work on it.

        What belongs to the image is computed for the first of them; after it a question costs little more than a
        prompt without an image. Answers are those of separate runs up to rounding. One example at a time, read into
        a cache of keys and values (as `generate` does); only the last image is remembered. Weights must stay
        as they are: after changing them (another LoRA adapter, say) call `clear()` on what this gives.

        Args:
            cache: one to go on with, for instance after attaching the same method again; a new one by default.

        Raises UnsupportedModelError for methods whose visual rows cannot be shared, and, while reading, for models
        whose image rows attend to the question.
        """
        used = ImageCache() if cache is None else cache
        with self._hooks.opening.image_cache(used):
            yield used

    def remove(self) -> None:
        """Restores the model: hooks, config and attention implementation are what they were, but for an implementation
        that was set meanwhile, which stays. Safe to call twice."""
        if not self.is_attached:
            return
        self._attachment.remove()
        if self._tap is not None:
            self._tap.remove()
        self._static.remove()
        self._generating.remove()
        self._refusals.remove()
        self._hooks.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
