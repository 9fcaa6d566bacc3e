"""The model that is measured, and every decision taken to make it fit this machine, told in `notes`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from visipruner.models.precision import bfloat16_slowness
from visipruner.models.shape import ModelShape
from visipruner.speed import machine
from visipruner.speed.build import empty_model, fill, parameter_bytes, tie_layers
from visipruner.speed.shapes import load_config

_TRY_OUT = "tiny"
_NO_MEASURE = "made to try the command, and no measure of speed: overheads outweigh its few numbers"


@dataclass(frozen=True)
class Subject:
    """A model ready to run.

    Attributes:
        name: of the shape or the checkpoint. tied: whether its layers share their weights.
        notes: what was decided for this machine, in sentences.
    """

    name: str
    model: Any
    tied: bool
    notes: list[str] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return self.shape.num_layers

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.model.config)

    def describe(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "name": self.name,
            "type": self.model.config.model_type,
            "shape": self.shape.to_dict(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config.get_text_config()._attn_implementation,
            "tied_layers": self.tied,
            "parameter_bytes": parameter_bytes(self.model),
            "notes": self.notes,
        }


def from_shape(
    shape: str,
    *,
    dtype: str = "auto",
    attn: str = "sdpa",
    layers: int | None = None,
    tie: bool | None = None,
    device: str = "cpu",
    rows: int = 624,
) -> Subject:
    """A random model of a shape, in memory.

    Args:
        dtype: "auto" is bfloat16, or float32 where this processor is slow at bfloat16.
        layers: only so many decoder layers. tie: share one layer's weights; None decides by the memory that is free.
        rows: of the longest prompt to come, all examples together, for the estimate of what must fit.

    Raises ConfigError for shapes that are none, MachineError where it cannot fit.
    """
    notes = [_NO_MEASURE] if shape == _TRY_OUT else []
    place = torch.device(device)
    config = load_config(shape, layers)
    wanted = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and place.type == "cpu" and (slower := bfloat16_slowness()) > 1.5:
        wanted = torch.float32
        notes.append(f"float32, as bfloat16 products take {slower:.0f} times as long on this processor")
    model = empty_model(config, wanted, attn)
    work = _working_bytes(ModelShape.from_config(config), rows, wanted.itemsize)
    fits = parameter_bytes(model) + work < machine.free_bytes()
    tied = tie if tie is not None else place.type == "cpu" and not fits
    if tied:
        whole = parameter_bytes(model)
        tie_layers(model)
        why = "" if tie else f", as {machine.gigabytes(whole)} of weights do not fit in memory"
        notes.append(f"layers share one layer's weights{why}; times are those of the real shape")
    if place.type == "cpu":
        machine.check_room(parameter_bytes(model) + work, f"The shape {shape}")
    fill(model, place)
    return Subject(shape if layers is None else f"{shape}, {layers} layers", model, tied, notes)


def _working_bytes(shape: ModelShape, rows: int, item: int) -> int:
    """About what a dense prompt of `rows` rows holds: keys and values, hidden states, one layer's FFN."""
    keys = 2 * shape.num_kv_heads * shape.head_dim * shape.num_layers
    return rows * item * (keys + 8 * shape.hidden_size + 3 * shape.intermediate_size) + 4 * shape.vocab_size * 64
