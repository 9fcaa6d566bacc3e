"""The parts of a model that the engine works with, found once through its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visipruner.adapters import adapter_of
from visipruner.adapters.base import Adapter, submodule
from visipruner.adapters.generic import completed
from visipruner.adapters.structure import mixer_of
from visipruner.engine.attention import PREFIX, Kernel, form_of, host_kernel
from visipruner.engine.masks import MaskForm
from visipruner.errors import UnsupportedModelError
from visipruner.models.shape import ModelShape


@dataclass(frozen=True, eq=False)
class Host:
    """A stock model, taken apart.

    Attributes:
        decoder: the text decoder stack. layers: its layers. attentions: their self-attention modules; in the layers
            `states`, which have none, what passes a state from row to row.
        embedder: the module that is given `input_ids` and `pixel_values`, which may be the decoder, or None for text
            decoders.
        tower: the vision tower, or None where nobody said which patches visual tokens are made of.
        configs: every config object that the attention modules read their implementation from.
        implementation: the attention implementation the model was loaded with. kernel: the function behind it; form:
            how that is told which keys a row may see.
    """

    adapter: Adapter
    decoder: nn.Module
    layers: list[nn.Module]
    attentions: list[nn.Module]
    states: frozenset[int]
    embedder: nn.Module | None
    tower: nn.Module | None
    configs: list[Any]
    implementation: str
    kernel: Kernel
    form: MaskForm
    shape: ModelShape

    @classmethod
    def of(cls, model: nn.Module, adapter: Adapter) -> Host:
        """Takes `model` apart. Raises UnsupportedModelError where it is not what the adapter says, or its attention
        cannot be told which keys a row may see."""
        adapter = completed(model, adapter)
        decoder, layers = _decoder(model, adapter)
        attentions = [mixer_of(layer, adapter.attention) for layer in layers]
        states = frozenset(at for at, layer in enumerate(layers) if not hasattr(layer, adapter.attention))
        attending = [part for at, part in enumerate(attentions) if at not in states]
        configs = {id(config): config for config in (decoder.config, *(part.config for part in attending))}
        implementation: Any = decoder.config._attn_implementation  # type: ignore[union-attr]
        # The config may be a copy of an attached model's.
        implementation = implementation.removeprefix(PREFIX)
        form = form_of(implementation)
        return cls(
            adapter=adapter,
            decoder=decoder,
            layers=layers,
            attentions=attentions,
            states=states,
            embedder=submodule(model, adapter.embedder),
            tower=submodule(model, adapter.vision),
            configs=list(configs.values()),
            implementation=implementation,
            kernel=host_kernel(attending[0], implementation),
            form=form,
            shape=ModelShape.from_config(decoder.config),
        )

    @property
    def first_attention(self) -> nn.Module:
        """The self-attention of the first layer that has one."""
        return next(part for at, part in enumerate(self.attentions) if at not in self.states)

    @property
    def has_query_maps(self) -> bool:
        """Whether queries are made by modules of their own, which can be left out."""
        return isinstance(getattr(self.first_attention, self.adapter.query, None), nn.Module)

    @property
    def caches_latents(self) -> bool:
        """Whether the cache holds what keys and values are made of (MLA, DeepSeek-V2, arXiv 2405.04434), not these."""
        return bool(getattr(self.decoder.config, "kv_lora_rank", None))

    @property
    def dtype(self) -> torch.dtype:
        return next(self.decoder.parameters()).dtype

    @property
    def is_eager(self) -> bool:
        """Whether attention is eager, or a function registered with eager's masks: it takes nothing but these, and
        may give attention maps."""
        return self.form is MaskForm.ADDED


def depth_of(model: nn.Module) -> int:
    """Layers of a model's text decoder. Raises UnsupportedModelError."""
    return len(_decoder(model, adapter_of(model))[1])


def _decoder(model: nn.Module, adapter: Adapter) -> tuple[nn.Module, list[nn.Module]]:
    for path in adapter.decoder:
        decoder = submodule(model, (path,))
        layers = getattr(decoder, adapter.layers, None)
        if isinstance(decoder, nn.Module) and isinstance(layers, nn.ModuleList) and len(layers):
            return decoder, list(layers)
    raise UnsupportedModelError(
        f"No text decoder was found in {type(model).__name__} (looked at {', '.join(adapter.decoder)}); give a model "
        "loaded with AutoModelForImageTextToText or AutoModelForCausalLM, with nothing around it."
    )
