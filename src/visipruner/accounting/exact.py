"""Multiply-adds that a traced run really executed in the decoder's matrix products. Any shape, grouped-query included.

Counted: the four attention projections, attention (keys and values), what passes a state from row to row where layers
have that instead, the gated FFN's three matrices, a pruner's score, and the output head where asked for. All rows
count, text, visual and the padding that ran. Not counted: norms, softmax, RoPE, activations, residuals, gathers, the
vision tower. One multiply-add (`macs`) is two FLOPs (`flops`).
Attention counts the rectangles handed to the kernel, masked half included, as torch's counter does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from visipruner.accounting.record import ExampleTrace, LayerWork
from visipruner.models.shape import ModelShape


@dataclass(frozen=True)
class Macs:
    """Multiply-adds by component.

    Attributes:
        query_output: query and output projections, `2 d H h` per attention row.
        key_value: key and value projections, `d H_kv h` per key row and per value row.
        attention: `QK^T` and `AV`, `2 H h` per (query, key) pair.
        states: projections, convolution and state of layers without attention, `state_macs` per row of theirs.
        ffn: gate, up and down, `3 d m` per row, and a router's choice, `d E` per row.
        score: a pruner's evidence, counted like attention: one product with the keys, one with the values. A method
            may need one more (VisiPruner takes visual values twice); for its single row that is about 1e-4 of a prompt.
            Rows that it projects ahead of the layer count in full: query, key and value.
        lm_head: `d V` per row whose logits are computed.
    """

    query_output: int = 0
    key_value: int = 0
    attention: int = 0
    states: int = 0
    ffn: int = 0
    score: int = 0
    lm_head: int = 0

    @property
    def total(self) -> int:
        """All components, in multiply-adds."""
        return sum(asdict(self).values())

    @property
    def flops(self) -> int:
        """All components, in floating-point operations: `2 * total`."""
        return 2 * self.total

    def __add__(self, other: Macs) -> Macs:
        return Macs(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def to_dict(self) -> dict[str, int]:
        """JSON-ready: multiply-adds per component, `total`, and `flops`."""
        return {**asdict(self), "total": self.total, "flops": self.flops}


def layer_macs(shape: ModelShape, work: LayerWork) -> Macs:
    """Multiply-adds of one layer for one example."""
    d, head_width, kv_width = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return Macs(
        query_output=2 * d * head_width * work.attention_rows,
        key_value=d * kv_width * (work.key_rows + work.value_rows),
        attention=2 * head_width * work.attention_pairs,
        states=shape.state_macs * work.state_rows,
        ffn=d * (3 * shape.intermediate_size + shape.num_experts) * work.rows,
        score=2 * head_width * work.score_pairs + work.score_rows * d * (head_width + 2 * kv_width),
    )


def work_macs(shape: ModelShape, work: Iterable[LayerWork], logit_rows: int = 0) -> Macs:
    """Multiply-adds of several layers, plus the output head for `logit_rows` rows."""
    layers = sum((layer_macs(shape, layer) for layer in work), Macs())
    return layers + Macs(lm_head=logit_rows * shape.hidden_size * shape.vocab_size)


def prompt_macs(shape: ModelShape, example: ExampleTrace, logit_rows: int = 0) -> Macs:
    """Multiply-adds of one traced prompt (prefill). `logit_rows` is 1 under `generate`, 0 leaves the head out."""
    return work_macs(shape, example.work, logit_rows)


def dense_work(shape: ModelShape, length: int) -> list[LayerWork]:
    """What the plain model executes for a prompt of `length` rows (padding, if any, included): full rectangles."""
    return [_dense_layer(shape, layer, length, length * length) for layer in range(shape.num_layers)]


def _dense_layer(shape: ModelShape, layer: int, rows: int, pairs: int) -> LayerWork:
    if layer in shape.state_layers:
        return LayerWork(rows, state_rows=rows)
    return LayerWork(rows, rows, rows, rows, attention_pairs=pairs)


def dense_macs(shape: ModelShape, length: int, logit_rows: int = 0) -> Macs:
    """Multiply-adds of the plain model for a prompt of `length` rows."""
    return work_macs(shape, dense_work(shape, length), logit_rows)


def prompt_cut(shape: ModelShape, example: ExampleTrace, dense_length: int | None = None, logit_rows: int = 0) -> float:
    """Fraction of the dense prompt's multiply-adds that pruning saved (text, visual and score all counted).

    `dense_length` is what the plain model would have run, by default the prompt without padding; give the padded
    length for a padded batch. Negative where scores cost more than pruning saved.
    """
    dense = dense_macs(shape, example.prompt_length if dense_length is None else dense_length, logit_rows).total
    return 1.0 - prompt_macs(shape, example, logit_rows).total / dense if dense else 0.0


def decode_macs(shape: ModelShape, key_lengths: Sequence[int], step: int = 0, logit_rows: int = 1) -> Macs:
    """Multiply-adds of one new token.

    `key_lengths[l]` is what layer l holds once the prompt is processed (`ExampleTrace.key_lengths`); the token of
    `step` (0 is the first one decoded) attends to those, to the `step` tokens before it and to itself.
    """
    if len(key_lengths) != shape.num_layers:
        raise ValueError(f"got the key lengths of {len(key_lengths)} layers for a model of {shape.num_layers}")
    work = [_dense_layer(shape, layer, 1, keys + step + 1) for layer, keys in enumerate(key_lengths)]
    return work_macs(shape, work, logit_rows)


def dense_decode_macs(shape: ModelShape, prompt_length: int, step: int = 0, logit_rows: int = 1) -> Macs:
    """Multiply-adds of one new token in the plain model."""
    return decode_macs(shape, [prompt_length] * shape.num_layers, step, logit_rows)
