"""The paper's own cost formulas, to reproduce its percentages. Not what a run executes: see `exact` and `measured`.

VisiPruner (EMNLP 2025, arXiv 2510.17205) counts *visual tokens only* and *multiply-adds*, although it writes FLOPs:
n visual tokens cost a layer `4 n d^2 + 2 n^2 d + 3 n d m` (attention projections, attention, gated FFN). Text rows,
embeddings, the output head, softmax and norms are left out, and a grouped-query model is counted as if it had as many
key/value heads as query heads. Layer counts may be fractions here, because the paper reports means over samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from visipruner.accounting.record import ExampleTrace
from visipruner.models.shape import ModelShape


class LayerSpan(NamedTuple):
    """Some consecutive layers that treat vision alike.

    Attributes:
        layers: how many; a fraction in a mean over samples.
        visual_tokens: visual tokens in each of them, `n`.
        visual_attention: False where visual tokens neither attend nor are attended to (the shallow stage): the
            `2 n^2 d` term is dropped, the projections and the FFN are kept, as the paper counts it.
        visual_updates: False where visual tokens only give text rows keys and values. The paper has no such layers; its
            terms for what runs are kept: `2 n d^2` of the projections, and the cross-attention.
    """

    layers: float
    visual_tokens: float
    visual_attention: bool = True
    visual_updates: bool = True


Schedule = Sequence[LayerSpan]


@dataclass(frozen=True)
class PaperModel:
    """A model and a prompt as the paper's formulas see them.

    Attributes:
        name: for tables.
        shape: sizes of the text decoder.
        visual_tokens: visual tokens of the prompt, `n_v`.
        text_tokens: the others, `n_t`; only the cross-attention term uses them.
    """

    name: str
    shape: ModelShape
    visual_tokens: int
    text_tokens: int

    @property
    def dense_schedule(self) -> tuple[LayerSpan, ...]:
        """Every visual token in every layer."""
        return (LayerSpan(self.shape.num_layers, self.visual_tokens),)


def _llama(layers: int, hidden: int, heads: int, intermediate: int, vocab: int = 32000) -> ModelShape:
    return ModelShape(layers, hidden, heads, heads, hidden // heads, intermediate, vocab)


LLAVA_1_5_7B = PaperModel("LLaVA-1.5-7B", _llama(32, 4096, 32, 11008), visual_tokens=576, text_tokens=74)
LLAVA_1_5_13B = PaperModel("LLaVA-1.5-13B", _llama(40, 5120, 40, 13824), visual_tokens=576, text_tokens=74)


def visual_layer_macs(shape: ModelShape, span: LayerSpan) -> float:
    """Multiply-adds of visual tokens in *one* layer of a span: `4 n d^2 + 3 n d m`, and `2 n^2 d` if they attend."""
    n, d, m = span.visual_tokens, shape.hidden_size, shape.intermediate_size
    if not span.visual_updates:
        return 2 * n * d * d
    attention = 2 * n * n * d if span.visual_attention else 0.0
    return 4 * n * d * d + 3 * n * d * m + attention


def visual_macs(shape: ModelShape, schedule: Schedule) -> float:
    """Multiply-adds of the visual tokens in all layers, the paper's "TFLOPs" (times 1e12).

    Dense LLaVA-1.5-7B gives 3.817e12 (printed 3.82 T), 13B 7.444e12 (7.44 T).
    """
    return sum(span.layers * visual_layer_macs(shape, span) for span in schedule)


def cross_attention_macs(model: PaperModel, schedule: Schedule) -> float:
    """Multiply-adds between text rows and visual tokens: `2 n n_t d` per layer with visual attention.

    Not part of `visual_macs`. Keys and values both count, causality does not (all `n_t` text rows meet all n).
    """
    d, text = model.shape.hidden_size, model.text_tokens
    return sum(span.layers * 2 * span.visual_tokens * text * d for span in schedule if span.visual_attention)


def visual_self_attention_macs(model: PaperModel, schedule: Schedule) -> float:
    """Multiply-adds among visual tokens: `2 n^2 d` per layer with visual attention. Part of `visual_macs`."""
    d = model.shape.hidden_size
    attending = [span for span in schedule if span.visual_attention and span.visual_updates]
    return sum(span.layers * 2 * span.visual_tokens**2 * d for span in attending)


def visual_attention_cut(model: PaperModel, schedule: Schedule, *, as_printed: bool = False) -> float:
    """The paper's cut of visual attention, a fraction (98.3 % on average, 99 % at best, on 7B).

    Printed: `R = 1 - (L' 2 n'^2 d + L' n' n_t d) / (L 2 (n_v^2 + n_v n_t) d)`; above, the cross term lacks a
    factor 2. Read, with it restored, as `2 (n'^2 + n' n_t) d` on both sides; `as_printed=True` keeps the slip.
    So read it gives every baseline of the paper's table within 0.1 point (tools/paper_costs.py), `n'` being their mean
    token count over all layers. The 98.3 % is not reproduced: 10.3 tokens in L' = 9.1 layers give 99.9 %, and 75.6 %
    once the layers between the shallow stage and the filter layer count with the 576 tokens that they attend to.
    """
    dense = model.dense_schedule
    cross = cross_attention_macs(model, schedule) / (2 if as_printed else 1)
    return _cut(
        visual_self_attention_macs(model, schedule) + cross,
        visual_self_attention_macs(model, dense) + cross_attention_macs(model, dense),
    )


def schedule_from_trace(example: ExampleTrace) -> tuple[LayerSpan, ...]:
    """The schedule of one traced prompt: one span per layer, as many visual tokens as `kept[l]` holds.

    The entry of `kept` after the last layer is no layer and is left out.
    """
    return tuple(
        LayerSpan(1, len(kept), attends, layer not in example.frozen)
        for layer, (kept, attends) in enumerate(zip(example.kept[:-1], example.visual_attention, strict=True))
    )


def model_from_trace(shape: ModelShape, example: ExampleTrace, name: str = "this prompt") -> PaperModel:
    """The dense prompt of a trace as the formulas see it: its visual tokens, and all other rows as text."""
    visual = example.dense_visual
    return PaperModel(name, shape, visual, example.prompt_length + example.unseen_rows - visual)


def _cut(part: float, whole: float) -> float:
    return 1.0 - part / whole if whole else 0.0
