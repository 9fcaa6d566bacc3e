"""What the engine must know about a model family, declared. Only `locate` and `images` run during a forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from visipruner.adapters.towers import Patches, squares
from visipruner.contract.layout import ImageTokens, VisualRows

Locate = Callable[[nn.Module, Mapping[str, Any]], Tensor | None]
Images = Callable[[nn.Module, Mapping[str, Any], Tensor], Sequence[ImageTokens] | None]

# Words that several families share in `lacks` and `remarks`.
NO_VIDEO = "The family reads no videos."
FRAMES = "Frames are images to the model; tried as several images, not with a video processor."
LATER_TURNS = "Without `token_type_ids` later turns attend to what came before only, images included; so in the host."
POSITIONS = "Pass `position_ids` of the whole conversation: the host computes them wrongly from the new turn alone."
VIDEO_PROCESSOR = "Without torchvision, which its processor's videos need, the processor is made for images only."


@dataclass(frozen=True)
class Adapter:
    """One family of models.

    Attributes:
        family: name people use, for lists and errors.
        model_types: values of `config.model_type` it serves.
        decoder: dotted paths, tried in order, from the model to the text decoder stack (the module with the layers).
            Empty: `decoder`, `embedder`, `layers`, `attention` and `added_features` are read from the model.
        embedder: dotted paths to the module whose forward is given `input_ids` and `pixel_values`; its keyword
            arguments go to `locate`. Empty for text models, whose visual rows the caller marks.
        locate: `(embedder, its keyword arguments)` to `[batch, seq]` bool, True on visual rows, or None when the
            arguments do not say (the engine then asks for a mask).
        images: `(embedder, keyword arguments of embedder and decoder together, visual rows)` to one `ImageTokens` per
            image in prompt order, for traces and pictures. None, or None returned: an unbroken run is an image.
        visual: which rows count as visual, in words, for the documentation.
        vision: dotted paths to the vision tower, for methods that look at its attention; empty where visual tokens
            are not made of patches of their own. patches: which patches a token is made of (`adapters.towers`); by
            default one, or a square of neighbours, of a picture that all are alike. no_patches: why tokens are made of
            no patches of their own, where that is known.
        layers: attribute of the decoder with its layers. attention: attribute of a layer with its attention.
        final_norm: attribute of the decoder with the norm after its last layer. output: attribute of the attention
            with the output projection.
        query: attribute of the attention with the query projection, where it is a module of its own; it is spared the
            visual rows that only give keys.
        key_value: attributes of the attention with the key and the value projection, where they are modules of their
            own; they are spared the visual rows that no row attends to.
        added_features: keyword arguments of the decoder with `[batch, seq]` bool rows and a list of `[rows, d]`
            features, one entry added to those rows after each of the first layers (DeepStack), or a dictionary of
            them by the layer before which they are added; None where there are none.
        lacks: what does not work, `{feature: why}`; remarks: what works with a remark. The features are those of
            `visipruner.adapters.features`; both are for the documentation.
    """

    family: str
    model_types: tuple[str, ...]
    decoder: tuple[str, ...] = ()
    embedder: tuple[str, ...] = ()
    locate: Locate | None = None
    images: Images | None = None
    visual: str = ""
    vision: tuple[str, ...] = ()
    patches: Patches = squares
    no_patches: str = ""
    layers: str = "layers"
    attention: str = "self_attn"
    final_norm: str = "norm"
    output: str = "o_proj"
    query: str = "q_proj"
    key_value: tuple[str, str] = ("k_proj", "v_proj")
    added_features: tuple[str, str] | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    remarks: Mapping[str, str] = field(default_factory=dict)

    def arranged(self, embedder: nn.Module, call: Mapping[str, Any], mask: Tensor) -> VisualRows:
        """The rows that `locate` found with the images they belong to; `call` as for `images`."""
        images = self.images(embedder, call, mask) if self.images is not None and bool(mask.any()) else None
        return VisualRows(mask, images)


def submodule(model: nn.Module, paths: tuple[str, ...]) -> nn.Module | None:
    """The first of `paths` that exists below `model`; an empty path is the model itself."""
    for path in paths:
        module: Any = model
        for name in path.split(".") if path else []:
            module = getattr(module, name, None)
        if isinstance(module, nn.Module):
            return module
    return None
