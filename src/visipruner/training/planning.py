"""What an analysis suggests for training another model, and what that would save: numbers only, no model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visipruner.accounting.exact import Macs, work_macs
from visipruner.accounting.kv import expected_kv_bytes
from visipruner.accounting.record import LayerWork
from visipruner.analysis.boundaries import tokens_of
from visipruner.analysis.stages import idle_layers
from visipruner.errors import VisiPrunerError
from visipruner.models.shape import ModelShape
from visipruner.training.settings import Alignment

# Matrix products of a training step in forward passes: the forward, the gradient of every input, that of every weight.
FULL_TRAINING, FROZEN_TRAINING = 3, 2


@dataclass(frozen=True)
class Suggestion:
    """Layers and tokens read off an analysis of a model of `num_layers` layers and `visual_tokens` visual tokens.

    Attributes:
        name: "estimate" takes the point estimates; "cautious" the ends of the 95 % intervals that keep more.
        inject_layer, exit_layer, filter_layer, keep_tokens: see `Alignment`; None where there is no evidence.
        frozen_layers: those in which visual rows may pause, see `Alignment`; empty where there is no evidence.
    """

    name: str
    num_layers: int
    visual_tokens: int
    inject_layer: int
    exit_layer: int | None
    filter_layer: int | None
    keep_tokens: int | None
    frozen_layers: tuple[int, ...] = ()

    def fitted(self) -> Suggestion:
        """Of these numbers as many as go together in such a model."""
        inject, leave = min(self.inject_layer, self.num_layers - 1), self.exit_layer
        if leave is not None and not inject < leave < self.num_layers:
            leave = None
        end = self.num_layers if leave is None else leave
        chooser, keep = None, None
        # At the last layer with vision nothing is left to be sparse.
        if self.filter_layer is not None and self.keep_tokens is not None and max(inject, self.filter_layer) < end - 1:
            chooser, keep = max(inject, self.filter_layer), self.keep_tokens
        frozen = tuple(layer for layer in self.frozen_layers if layer < end)
        return replace(
            self, inject_layer=inject, exit_layer=leave, filter_layer=chooser, keep_tokens=keep, frozen_layers=frozen
        )

    def scaled(self, num_layers: int, visual_tokens: int) -> Suggestion:
        """The same relative depth, and share of the visual tokens, in a model of another size."""

        def depth(layer: int | None) -> int | None:
            return None if layer is None else round(layer * num_layers / self.num_layers)

        keep, frozen = self.keep_tokens, self.frozen_layers
        return Suggestion(
            name=self.name,
            num_layers=num_layers,
            visual_tokens=visual_tokens,
            inject_layer=depth(self.inject_layer) or 0,
            exit_layer=depth(self.exit_layer),
            filter_layer=depth(self.filter_layer),
            keep_tokens=None if keep is None else max(1, round(keep * visual_tokens / self.visual_tokens)),
            frozen_layers=tuple(n for n in range(num_layers) if n * self.num_layers // num_layers in frozen),
        ).fitted()

    def alignment(self, guidelines: str) -> Alignment:
        """The settings that a combination of the letters a, b, c and f stands for, without those there is no evidence
        for. Of the frozen layers (b) leaves those below its own."""
        chooser = self.filter_layer if "b" in guidelines else None
        below = self.num_layers if chooser is None else chooser
        return Alignment(
            inject_layer=self.inject_layer if "a" in guidelines else 0,
            exit_layer=self.exit_layer if "c" in guidelines else None,
            filter_layer=chooser,
            keep_tokens=None if chooser is None else self.keep_tokens,
            frozen_layers=tuple(layer for layer in self.frozen_layers if "f" in guidelines and layer < below),
        )


def suggestions(analysis: Mapping[str, Any]) -> list[Suggestion]:
    """What `analysis.json` supports. Raises VisiPrunerError where it holds no stages."""
    stages = analysis.get("stages")
    if not stages:
        raise VisiPrunerError("This analysis read off no stages; run `visipruner analyze` without --only.")
    layers, visual = int(analysis["model"]["layers"]), int(analysis["model"]["visual_tokens"])
    start, end, chosen = stages["overall"]["shallow_end"], stages["overall"]["exit_layer"], stages.get("filter")
    found = []

    def at(boundary: Mapping[str, Any], which: str) -> int:
        """An end of the boundary's interval; of one image there is none."""
        return int(boundary["value"] if boundary[which] is None else boundary[which])

    for name, first, last in (("estimate", "value", "value"), ("cautious", "low", "high")):
        inject = 0 if start is None else at(start, first)
        leave = None if end is None or not inject < at(end, last) < layers else at(end, last)
        keep = None if chosen is None else tokens_of(chosen["budget"], visual)
        chooser = None if chosen is None else int(chosen["layer"])
        seen = range(layers if leave is None else leave)
        frozen = tuple(idle_layers(analysis, seen, "mean" if name == "estimate" else "high"))
        found.append(Suggestion(name, layers, visual, inject, leave, chooser, keep, frozen).fitted())
    return found


@dataclass(frozen=True)
class Choice:
    """One combination of the guidelines at one shape.

    Attributes:
        guidelines: letters, "-" for the plain model. rows: visual rows in each layer. frozen: layers, ascending, in
            which they only give keys and values. prefill: of a prompt. kv_bytes: of the prompt, two bytes a number.
    """

    guidelines: str
    rows: tuple[int, ...]
    frozen: tuple[int, ...]
    prefill: Macs
    kv_bytes: int


def choices(shape: ModelShape, visual: int, text: int, suggestion: Suggestion) -> list[Choice]:
    """Plain, (a), (b), (c), frozen layers (f) and their combinations for a prompt of `visual` and `text` rows; the
    output head, which is the same for all, is left out. Layers are frozen only where a suggestion names some, with (b)
    where it names some below the filter layer."""
    layers = shape.num_layers
    own = suggestion.scaled(layers, visual)
    found = []
    for letters in ("-", "a", "b", "c", "a+c", "a+b+c", "f", "f+c", "f+b+c"):
        settings = own.alignment(letters)
        settings.check(layers)
        frozen = settings.frozen_layers
        if "f" in letters and not frozen:
            continue
        rows = [_visual_rows(settings, layer, visual) for layer in range(layers)]
        lengths = [text + count for count in rows]
        work = []
        for layer, seen in enumerate(lengths):
            ran = text if layer in frozen else seen
            work.append(LayerWork(ran, ran, key_rows=seen, value_rows=seen, attention_pairs=ran * seen))
        kv_bytes = expected_kv_bytes(shape, lengths, dtype_bytes=2)
        found.append(Choice(letters, tuple(rows), frozen, work_macs(shape, work), kv_bytes))
    return found


def _visual_rows(settings: Alignment, layer: int, visual: int) -> int:
    first, last = settings.first(), settings.last()
    if layer < first or (last is not None and layer >= last):
        return 0
    if settings.filter_layer is None or settings.keep_tokens is None or layer <= settings.filter_layer:
        return visual
    return min(visual, settings.keep_tokens)


def as_rows(found: Sequence[Choice]) -> list[dict[str, Any]]:
    """JSON rows with what each choice saves beside the plain model, as fractions. `train_flops`: of a step for one
    example of the same rows, all weights trained or the decoder's frozen (LoRA's own are not counted)."""
    plain = found[0]
    return [
        {
            "guidelines": one.guidelines,
            "layers_with_vision": sum(count > 0 for count in one.rows),
            "visual_rows": list(one.rows),
            "frozen_layers": list(one.frozen),
            "prefill_flops": one.prefill.flops,
            "train_flops_full": FULL_TRAINING * one.prefill.flops,
            "train_flops_frozen": FROZEN_TRAINING * one.prefill.flops,
            "flops_cut": 1 - one.prefill.total / plain.prefill.total,
            "kv_bytes": one.kv_bytes,
            "kv_cut": 1 - one.kv_bytes / plain.kv_bytes,
        }
        for one in found
    ]
