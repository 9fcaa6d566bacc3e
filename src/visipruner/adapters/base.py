"""What the engine must know about a model family, declared. Nothing here runs during a forward but `locate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from visipruner.layout import VisualRows

Locate = Callable[[nn.Module, Mapping[str, Any]], VisualRows | None]


@dataclass(frozen=True)
class Adapter:
    """One family of models.

    Attributes:
        family: name people use, for lists and errors.
        model_types: values of `config.model_type` it serves.
        decoder: dotted paths, tried in order, from the model to the text decoder stack (the module with the layers).
        embedder: dotted paths to the module whose forward is given `input_ids` and `pixel_values`; its keyword
            arguments go to `locate`. Empty for text models, whose visual rows the caller marks.
        locate: finds the visual rows from the embedder's keyword arguments, or returns None when the arguments do
            not say (the engine then asks for a mask).
        layers: attribute of the decoder with its layers. attention: attribute of a layer with its attention.
        final_norm: attribute of the decoder with the norm after its last layer. output: attribute of the attention
            with the output projection.
        key_value: attributes of the attention with the key and the value projection, where they are modules of their
            own; they are spared the visual rows that no row attends to.
    """

    family: str
    model_types: tuple[str, ...]
    decoder: tuple[str, ...]
    embedder: tuple[str, ...] = ()
    locate: Locate | None = None
    layers: str = "layers"
    attention: str = "self_attn"
    final_norm: str = "norm"
    output: str = "o_proj"
    key_value: tuple[str, str] = ("k_proj", "v_proj")


def submodule(model: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """The first of `paths` that exists below `model`; an empty path is the model itself."""
    for path in paths:
        module: Any = model
        for name in path.split(".") if path else []:
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def tokens_equal(input_ids: Tensor, token_ids: tuple[int, ...]) -> Tensor:
    """`[batch, seq]` bool: which rows hold one of `token_ids`."""
    mask = input_ids == token_ids[0]
    for token in token_ids[1:]:
        mask = mask | (input_ids == token)
    return mask
