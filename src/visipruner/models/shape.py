"""The sizes of a text decoder that work and memory depend on. Nothing here runs a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one decoder.

    Attributes:
        num_layers: decoder layers, `L`.
        hidden_size: width of the residual stream, `d`.
        num_heads: query heads.
        num_kv_heads: key/value heads (fewer than `num_heads` under grouped-query attention).
        head_dim: width of one head.
        intermediate_size: FFN width that one row passes, `m`; in a mixture of experts that of its chosen and shared
            experts together (where some layers are dense, all count as sparse).
        vocab_size: rows of the output embedding.
        num_experts: experts that a router chooses from, 0 without a router.
        state_layers: layers that pass a state from row to row (linear attention, convolutions) in place of attending.
        state_macs: multiply-adds of that for one row.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    num_experts: int = 0
    state_layers: tuple[int, ...] = ()
    state_macs: int = 0

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """Reads a transformers config; for a multimodal one, its text part."""
        text = _uniform(config.get_text_config(decoder=True))
        heads = text.num_attention_heads
        return cls(
            num_layers=text.num_hidden_layers,
            hidden_size=text.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            intermediate_size=_active_width(text),
            vocab_size=text.vocab_size,
            num_experts=getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 0,
            state_layers=_state_layers(text),
            state_macs=_state_macs(text),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return {**asdict(self), "state_layers": list(self.state_layers)}


def _uniform(text: Any) -> Any:
    """A text config, or that of its first layer where layers have sizes of their own."""
    return text.per_layer_config[0] if getattr(text, "is_heterogeneous", False) else text


def _active_width(text: Any) -> int:
    chosen = getattr(text, "num_experts_per_tok", None)
    if not chosen:
        return _adjusted(text, int(getattr(text, "intermediate_size", None) or text.ffn_dim))
    width = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    if isinstance(width, (list, tuple)):  # of experts for text rows, then for visual ones
        width = width[0]
    shared = (
        getattr(text, "shared_expert_intermediate_size", None) or (getattr(text, "n_shared_experts", None) or 0) * width
    )
    return int(chosen * width + shared)


def _adjusted(text: Any, width: int) -> int:
    """LFM2's configs name a width of which its layers have two thirds, rounded up."""
    if not getattr(text, "block_auto_adjust_ff_dim", False):
        return width
    width = int(2 * width / 3)
    if text.block_ffn_dim_multiplier is None:
        return width
    return int(-(-int(text.block_ffn_dim_multiplier * width) // text.block_multiple_of) * text.block_multiple_of)


def _state_layers(text: Any) -> tuple[int, ...]:
    kinds = getattr(text, "layer_types", None) or ()
    return tuple(layer for layer, kind in enumerate(kinds) if kind in ("linear_attention", "conv"))


def _state_macs(text: Any) -> int:
    """Of one row: projections, the short convolution and, in gated linear attention (gated delta rule, arXiv
    2412.06464), three products with each head's state, `key width x value width`. Kernels that go by chunks of rows
    compute more."""
    if not _state_layers(text):
        return 0
    d = text.hidden_size
    if "conv" in text.layer_types:
        return int(d * (3 * d + d + text.conv_L_cache))
    heads, keys = text.linear_num_value_heads, text.linear_num_key_heads * text.linear_key_head_dim
    values = heads * text.linear_value_head_dim
    width = 2 * keys + values
    made = d * (width + values + 2 * heads) + width * text.linear_conv_kernel_dim + values * d
    return int(made + 3 * text.linear_key_head_dim * values)
