"""The model that is measured: a real shape with random weights in seconds, and every decision that made it fit this
machine, told in `notes`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.errors import ConfigError
from visipruner.models.precision import bfloat16_slowness
from visipruner.models.shape import ModelShape
from visipruner.speed import machine
from visipruner.words import did_you_mean


def names() -> list[str]:
    """Shapes that ship. Their numbers are those of the published checkpoints' configs; "tiny" is for trying out."""
    folder = files("visipruner.speed") / "shapes"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_config(shape: str, layers: int | None = None) -> Any:
    """The transformers config behind a name or a config.json, its decoder cut to `layers` layers.

    Raises ConfigError for a name that is unknown, and for a file that is no config of a model that reads images.
    """
    from transformers import AutoConfig

    content = _content(shape)
    if not isinstance(content, dict) or not content.get("model_type") or not content.get("vision_config"):
        raise ConfigError(f"{shape} is no config of a model that reads images: it needs model_type and vision_config.")
    if layers is not None:
        content = {**content, "text_config": _shortened(shape, content.get("text_config"), layers)}
    try:
        return AutoConfig.for_model(**content)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{shape} is no config that transformers knows ({error}).") from error


def _shortened(shape: str, text: Any, layers: int) -> dict[str, Any]:
    depth = text.get("num_hidden_layers") if isinstance(text, dict) else None
    if depth is None or layers > depth:
        raise ConfigError(f"{shape} has {depth or 'an unsaid number of'} layers; --layers can only take some away.")
    shorter: dict[str, Any] = {**text, "num_hidden_layers": layers}
    if "layer_types" in shorter:
        shorter["layer_types"] = shorter["layer_types"][:layers]
    return shorter


def _content(shape: str) -> Any:
    path = Path(shape).expanduser()
    if path.suffix == ".json" or path.is_dir():
        path = path / "config.json" if path.is_dir() else path
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"No config can be read from {path} ({error}).") from error
    if shape not in names():
        hint = did_you_mean(shape, names()) or f" Choose one of {', '.join(names())}, or a config.json."
        raise ConfigError(f"There is no shape {shape!r}.{hint}")
    return json.loads((files("visipruner.speed") / "shapes" / f"{shape}.json").read_text(encoding="utf-8"))


_BLOCK = 1 << 20  # random numbers drawn once and repeated; products take the same time whatever they multiply


def empty_model(config: Any, dtype: torch.dtype, attn: str) -> Any:
    """The stock model of a config on the meta device: modules, no memory. Raises ConfigError."""
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn).eval()
    except ValueError as error:
        raise ConfigError(f"No model that reads images can be built from this config ({error}).") from error


def tie_layers(model: nn.Module) -> None:
    """Lets all layers of each stack share the parameters of its first one; each stays a module of its own.

    Layers of other parameters than the first stay as they are. A layer larger than the processor's caches is read from
    memory as often as before, so that time stays what it was.
    """
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        first: dict[tuple[Any, ...], nn.Module] = {}
        for layer in stack:
            signature = tuple((name, tuple(part.shape)) for name, part in layer.named_parameters())
            owner = first.setdefault((type(layer), signature), layer)
            for mine, theirs in zip(layer.modules(), owner.modules(), strict=True):
                mine._parameters.update(theirs._parameters)


def parameter_bytes(model: nn.Module) -> int:
    """Memory of the parameters; what is shared counts once."""
    return sum(part.numel() * part.element_size() for part in model.parameters())


@torch.no_grad()
def fill(model: Any, device: torch.device, seed: int = 0) -> None:
    """Gives a model on the meta device memory: matrices small random numbers, norms one, biases zero.

    What is shared stays shared. Buffers (rotary frequencies, position numbers) get their true values.
    """
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed)).to(device) * 0.02
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, part in module._parameters.items():
            if part is None or part.device.type != "meta":
                continue
            if id(part) not in known:
                known[id(part)] = nn.Parameter(_values(part, name, block), requires_grad=False)
                known[id(part)]._is_hf_initialized = True  # type: ignore[attr-defined]
            module._parameters[name] = known[id(part)]
    for module in model.modules():
        missing = [name for name, part in module._buffers.items() if part is not None and part.device.type == "meta"]
        for name in missing:
            module._buffers[name] = torch.empty_like(module._buffers[name], device=device)
        module._is_hf_initialized = not missing
    model.initialize_weights()  # transformers' own, for the modules that are left


def _values(like: Tensor, name: str, block: Tensor) -> Tensor:
    values = torch.empty(like.shape, dtype=like.dtype, device=block.device)
    if like.ndim < 2:
        return values.fill_(0.0 if "bias" in name else 1.0)
    flat = values.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(block[: part.numel()])
    return values


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
