"""A decoder call that brings visual rows becomes a session: which rows those are, whose images, and what is known."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache as remembered
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from visipruner.contract.layout import TokenLayout, VisualRows, is_in_line, layouts_of, mask_for_forward
from visipruner.contract.pruner import PromptRun, Pruner
from visipruner.contract.training_run import TrainingPruner
from visipruner.engine.calls import bound, brings_pixels, is_cached
from visipruner.engine.clock import EngineClock
from visipruner.engine.deepstack import AddedFeatures
from visipruner.engine.generating import Generation
from visipruner.engine.host import Host
from visipruner.engine.image_cache import ImageCache, SharedPrefix, check_image_cache
from visipruner.engine.patch_table import Vision
from visipruner.engine.recall import LeftRows, left_rows
from visipruner.engine.replay import Uncached
from visipruner.engine.run_ahead import RunAhead
from visipruner.engine.session import WHOLE, Forward, PromptSession
from visipruner.engine.threads import PerThread, Threads
from visipruner.engine.trace import PruneTrace, plain_examples
from visipruner.engine.vision import VisionTap
from visipruner.errors import LayoutError, UnsupportedModelError, VisiPrunerError


class Engine(Protocol):
    """Who owns a session: it runs a layer ahead, and pruned caches refuse to go on without it."""

    @property
    def run_ahead(self) -> RunAhead:
        """Runs a layer up to its attention."""


class Opening:
    """Opens sessions for one attached model. What belongs to a forward, or to a run of `generate`, is its thread's.

    Attributes:
        generation: the run of `generate` in this thread, None outside of it.
        running: the forward without a cache that is running, in `generate`.
        is_first: whether the forward that is running reads a prompt of its own, and not beside the one of `generate`.
    """

    generation = PerThread[Generation | None](lambda: None)
    running = PerThread[Uncached | None](lambda: None)
    is_first = PerThread[bool](bool)
    _found = PerThread[Tensor | None](lambda: None)
    _call = PerThread[Mapping[str, Any]](dict)
    _labels = PerThread[Tensor | None](lambda: None)
    _videos = PerThread[Tensor | None](lambda: None)  # rows of videos, for methods that look at the tower

    def __init__(
        self,
        host: Host,
        pruner: Pruner,
        visual_mask: Tensor | None,
        tap: VisionTap | None,
        clock: EngineClock | None = None,
    ) -> None:
        self._host, self._pruner, self._visual_mask, self._tap = host, pruner, visual_mask, tap
        self._clock = clock
        self._image_cache: ImageCache | None = None
        self.threads = Threads()

    # ---- before the decoder -----------------------------------------------------------------------------------------

    def take_labels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model with its head runs: which rows are learnt, for the row before one must stay."""
        self._labels = bound(module, args, kwargs).get("labels")

    def locate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the multimodal model embeds its inputs: which rows will be visual."""
        assert self._host.adapter.locate is not None
        call = self._call = bound(module, args, kwargs)
        self._found = None if _is_one_more(call) else self._host.adapter.locate(module, call)
        if self._tap is not None:
            ids, video = call.get("input_ids"), getattr(module.config, "video_token_id", None)
            self._videos = None if ids is None or video is None else ids == video
            if brings_pixels(call):
                self._tap.clear()  # of images whose forward was interrupted, or that were encoded for no prompt

    def open(
        self, owner: Engine, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[PromptSession | None, PruneTrace | None]:
        """A session for a call of the decoder that brings visual rows; else None, and the trace of a prompt without."""
        self.running = None  # one left by an interrupted forward is of no use
        if self._tap is not None:
            self._tap.spend()
        outer, self._call = self._call, {}
        labels, self._labels = self._labels, None
        call = bound(module, args, kwargs)
        embeds, cache = call.get("inputs_embeds"), call["cache"]
        rows = call.get("input_ids") if embeds is None else embeds
        if rows is None:
            return None, None  # let transformers raise its own error
        batch, seq = rows.shape[:2]
        past = int(cache.get_seq_length()) if cache is not None else 0
        is_aside = self._note_generation(call, rows)
        if past and seq == 1:
            return None, None  # a prompt's last row is never visual
        found = self._visual_rows(batch, past, seq, {**outer, **call}, is_aside)
        padding = _padding((call.get("attention_mask"), outer.get("attention_mask")), past + seq)
        visual, real, learnt = _read(found, padding, batch, past, seq, labels)
        if found is None or not visual.any():
            self.running = None
            return None, self._plain_trace(padding, batch, seq) if past == 0 and self.is_first else None
        session = self._started(owner, rows, (visual, real, learnt), found, past, {**outer, **call})
        return session, None

    def _note_generation(self, call: Mapping[str, Any], rows: Tensor) -> bool:
        """Where this forward stands in a run of `generate`; True for a later one that does not repeat its prompt (the
        unconditional one of classifier-free guidance)."""
        generation = self.generation
        self.is_first = generation is None or not generation.has_begun
        if generation is None:
            return False
        generation.has_begun = True
        if not is_cached(self._host.decoder, call):
            prompt = generation.prompt
            again = None if prompt is None else prompt.continued_by(rows)
            self.running = Uncached(rows, rows.shape[1]) if self.is_first else again
        return not self.is_first and self.running is None

    def _visual_rows(
        self, batch: int, past: int, seq: int, call: Mapping[str, Any], is_aside: bool
    ) -> VisualRows | None:
        """`is_aside`: a later forward of `generate` that does not repeat its prompt, which the user's mask is of."""
        found, self._found = self._found, None
        if self._visual_mask is not None:
            if is_aside:
                return None
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

    def _plain_trace(self, padding: Tensor | None, batch: int, seq: int) -> PruneTrace:
        shape = self._host.shape

        def read() -> list[Any]:
            return plain_examples(shape, [seq] * batch if padding is None else padding.sum(1).tolist(), seq)

        return PruneTrace(shape, read, self._host.dtype.itemsize)

    # ---- the session ------------------------------------------------------------------------------------------------

    def _started(
        self,
        owner: Engine,
        rows: Tensor,
        flags: tuple[np.ndarray, np.ndarray, np.ndarray | None],
        visual: VisualRows,
        past: int,
        call: Mapping[str, Any],
    ) -> PromptSession:
        """A session for `rows`, embeddings or token ids. `flags`: which rows of the forward are visual, which of all
        rows are no padding, and which of the forward are learnt. `call`: what model and decoder were given."""
        if past and self._host.caches_latents:
            raise UnsupportedModelError(
                f"The cache of {self._host.adapter.family} holds latents, so no further image can be pruned on it; "
                "start with a new cache, or remove the pruner."
            )
        is_visual, real, learnt = flags
        seq = rows.shape[1]
        running = self.running
        prompt_end = seq if running is None else running.prompt_end
        found = layouts_of(is_visual, real[:, past:], visual.images, rows.device, prompt_end, learnt)
        vision: list[Vision | None] = [None] * len(found)
        if running is not None and running.runs:
            runs: Sequence[PromptRun] = running.runs
        else:
            in_line = remembered(lambda: is_in_line(call.get("position_ids"), torch.from_numpy(real[:, past:])))
            runs = [self._pruner.begin(in_line) for _ in found]
            if self._clock is not None:
                runs = [self._clock.watched(run) for run in runs]
            if self._tap is not None:
                held = [np.flatnonzero(mine) for mine in is_visual & real[:, past:]]
                vision = self._tap.read(found, held, self._videos)
        wants_whole = next((name for name in WHOLE if self._asks_for(name, call)), None)
        forward = Forward(seq, past, real[:, :past].sum(1).tolist(), prompt_end, wants_whole)
        shared = self._shared_prefix(found, real[0], call) if not past and wants_whole is None else None
        left = self._left_rows(found, runs, past, seq, call) if self._pruner.recalls else None
        args = (self._pruner, self._host, weakref.ref(owner), found, runs, forward, owner.run_ahead, vision, shared)
        return PromptSession(*args, left)

    def _left_rows(
        self, found: Sequence[TokenLayout], runs: Sequence[PromptRun], past: int, seq: int, call: Mapping[str, Any]
    ) -> LeftRows | None:
        """What holds the rows that leave; None where no answer follows. Raises UnsupportedModelError."""
        if self.running is not None or self._image_cache is not None:
            raise UnsupportedModelError(
                "Tokens come back into a cache of the prompt's own; leave out use_cache=False and image_cache(), or "
                "recall."
            )
        return (
            left_rows(self._host, self._pruner, found, runs, past, seq) if is_cached(self._host.decoder, call) else None
        )

    def _asks_for(self, name: str, call: Mapping[str, Any]) -> bool:
        """Whether a call, or else the model's config, asks for what only whole layers can give."""
        if name == "output_attentions" and not self._host.is_eager:
            return False  # other implementations have no maps to give
        asked = call.get(name)
        return bool(getattr(self._host.decoder.config, name, False) if asked is None else asked)

    def features(self, kwargs: dict[str, Any]) -> tuple[AddedFeatures, dict[str, Any]] | None:
        """Features that the host would add to visual rows between layers, and the call without them."""
        names = self._host.adapter.added_features
        if names is None or kwargs.get(names[1]) is None:
            return None
        return AddedFeatures(*(kwargs[name] for name in names)), {**kwargs, **dict.fromkeys(names)}

    # ---- an image shared between prompts ----------------------------------------------------------------------------

    def _shared_prefix(
        self, found: Sequence[TokenLayout], real: np.ndarray, call: Mapping[str, Any]
    ) -> SharedPrefix | None:
        """What is known of a prompt's rows up to the end of its image, under an image cache."""
        embeds = call.get("inputs_embeds")
        is_off = self._image_cache is None or embeds is None or call["cache"] is None
        if self._image_cache is None or is_off or torch.is_grad_enabled() or not len(found[0].visual):
            return None
        if len(found) != 1:
            raise VisiPrunerError(
                "Under image_cache() prompts are read one at a time; pass one example and no beams, or leave it out."
            )
        assert embeds is not None
        length = int(found[0].on_host[1][-1]) + 1
        return SharedPrefix(self._image_cache, embeds, length, torch.from_numpy(real), call.get("attention_mask"))

    @contextmanager
    def image_cache(self, cache: ImageCache) -> Iterator[None]:
        """Lets prompts share what `cache` knows of their image. Raises UnsupportedModelError, VisiPrunerError."""
        if self._image_cache is not None:
            raise VisiPrunerError("This handle has an image cache already; leave its context first.")
        check_image_cache(self._host)
        pauses = any(self._pruner.routing(layer).freezes_visual for layer in range(len(self._host.layers)))
        is_fixed = isinstance(self._pruner, TrainingPruner) or self._host.caches_latents
        if is_fixed or self._pruner.first_layer() or pauses:
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


def _is_one_more(call: Mapping[str, Any]) -> bool:
    """Whether a call goes on by one row, which is never a visual one."""
    ids, cache = call.get("input_ids"), call["cache"]
    return ids is not None and ids.shape[1] == 1 and cache is not None and cache.get_seq_length() > 0


def _padding(masks: Sequence[Any], length: int) -> Tensor | None:
    """`[batch, length]` bool: rows that are not padding, as the first 2-D attention mask says; None without one.

    Some models give their decoder whole maps instead (attention in both directions within an image); what is padding
    is then known from the mask that they were given themselves.
    """
    for mask in masks:
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= length:
            return mask[:, :length].bool()
    return None


def _read(
    found: VisualRows | None, padding: Tensor | None, batch: int, past: int, seq: int, labels: Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Which rows are visual, no padding, and learnt: `[batch, seq]`, `[batch, past + seq]` and `[batch, seq]` bool; one
    read from the device."""
    if found is None:
        return np.zeros((batch, seq), dtype=bool), np.ones((batch, past + seq), dtype=bool), None
    masks = [found.mask]
    if padding is not None:
        masks.append(padding.to(found.mask.device))
    # Labels of another shape are none of the host's loss, which reads the row before each label.
    if labels is not None and labels.shape == found.mask.shape:
        masks.append((labels != -100).to(found.mask.device))
    else:
        labels = None
    flags = torch.cat(masks, dim=1).cpu().numpy() if len(masks) > 1 else masks[0].cpu().numpy()
    real = np.ones((batch, past + seq), dtype=bool)
    if padding is not None:
        real = flags[:, seq : 2 * seq + past]
    return flags[:, :seq], real, None if labels is None else flags[:, -seq:]
