"""A stock LLaVA whose config says in which layers visual rows exist; registered with transformers' Auto classes."""

from __future__ import annotations

from functools import wraps
from typing import Any, Self

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    TrainerCallback,
)

from visipruner.adapters.llava import ADAPTER
from visipruner.engine.attach import PruneHandle
from visipruner.engine.host import Host
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError, UnsupportedModelError
from visipruner.training.gates import Asked, VisualGates
from visipruner.training.guide import Guide
from visipruner.training.settings import Alignment, Learnt

MODEL_TYPE = "visipruner_llava"


@strict
class AlignedLlavaConfig(LlavaConfig):  # type: ignore[misc]
    """A `LlavaConfig` with `visual_stages`, an `Alignment` as a dict."""

    model_type = MODEL_TYPE
    visual_stages: dict | None = None  # type: ignore[type-arg]


class AlignedLlavaForConditionalGeneration(LlavaForConditionalGeneration):  # type: ignore[misc]
    """A LLaVA whose visual rows exist only in the layers that its config names; made by `align` or `from_pretrained`.

    Its layers are the stock ones, in the same order and under the same names. `visual_gates` holds what is learnt
    about depth. While it trains, the loss contains `visual_gates.regularizer()`.
    """

    config_class = AlignedLlavaConfig

    def __init__(self, config: AlignedLlavaConfig) -> None:
        super().__init__(config)
        self._handle: PruneHandle | None = None
        self.visual_gates = VisualGates(self.alignment, config.text_config.num_hidden_layers)
        self.stage()

    @property
    def alignment(self) -> Alignment:
        return Alignment.from_dict(dict(self.config.visual_stages or {}))

    @property
    def trace(self) -> PruneTrace:
        """What happened to the last prompt(s); see `PruneHandle.trace`."""
        return self._engine().trace

    @property
    def gates(self) -> VisualGates:
        """The `visual_gates` in use: with peft's `modules_to_save=["visual_gates"]` the copy that it trains."""
        module: Any = self.visual_gates
        if isinstance(module, VisualGates):
            return module
        active = [name for name in module.active_adapters if name in module.modules_to_save]
        chosen: VisualGates = (
            module.modules_to_save[active[0]] if active and not module.disable_adapters else module.original_module
        )
        return chosen

    def regularizer(self) -> Tensor:
        return self.gates.regularizer()

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        """What every way to switch checkpointing on comes to. Raises ConfigError for `use_reentrant=True`, which would
        not pass the gradient on to rows that enter between two layers."""
        function = kwargs.get("gradient_checkpointing_func", args[1] if len(args) > 1 else None)
        if getattr(function, "keywords", {}).get("use_reentrant"):
            raise ConfigError("Aligned models need use_reentrant=False for gradient checkpointing.")
        super()._set_gradient_checkpointing(*args, **kwargs)

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As the stock model's; the engine is put under the layers anew, and the last trace is forgotten.

        Raises UnsupportedModelError for an implementation that the engine cannot stand in for. One that transformers
        refuses changes nothing.
        """
        self._unstage()
        try:
            super().set_attn_implementation(*args, **kwargs)
        finally:
            self.stage()

    def stage(self) -> None:
        """Puts the engine under the layers as they are now. Raises ConfigError where the settings do not fit them."""
        self._unstage()
        host = Host.of(self, ADAPTER)
        self.alignment.check(len(host.layers))
        self._handle = PruneHandle(self, host, Guide(source=lambda: self.gates))

    def _unstage(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _engine(self) -> PruneHandle:
        if self._handle is None:
            raise UnsupportedModelError(
                "An aligned model cannot run with the attention implementation that it was set to; call "
                "set_attn_implementation('sdpa') or ('eager')."
            )
        return self._handle

    def _take_over(self, model: LlavaForConditionalGeneration) -> Self:
        """Modules, weights and sub-configs of a stock model in place of this one's own."""
        self.config.text_config, self.config.vision_config = model.config.text_config, model.config.vision_config
        self.model, self.lm_head = model.model, model.lm_head
        self.generation_config = model.generation_config
        device = next(model.parameters()).device
        self.visual_gates = VisualGates(self.alignment, self.config.text_config.num_hidden_layers).to(device)
        self.train(model.training)
        self.stage()
        return self

    # generate() and the Trainer read off the signature what a model may be given.
    @wraps(LlavaForConditionalGeneration.forward)
    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """As the stock model's; `labels` also say where each prompt ends, which is where tokens are chosen.

        Raises ConfigError while the model trains without `labels` what cannot be learnt without them, unless
        `VisualGates.asking` says where tokens are chosen."""
        self._engine()
        gates = self.gates
        if self.training and labels is None and gates.asked is None and gates.needs_labels:
            raise ConfigError(
                "While this model trains it must be given labels, as they say where a prompt ends and its loss holds "
                "the cost of layers: train without label_smoothing_factor and compute_loss_func, which make the "
                "Trainer keep labels to itself, or, with a loss of your own, use gates.asking() and regularizer(); to "
                "generate, put it in eval mode."
            )
        given = gates.asked if gates.asked is not None else _asked(labels, kwargs.get("attention_mask"))
        gates.expect(given)
        output = super().forward(*args, labels=labels, **kwargs)
        if self.training and output.loss is not None:
            output.loss = output.loss + self.regularizer().to(output.loss)
        return output


def _asked(labels: Tensor | None, mask: Tensor | None) -> list[Asked] | None:
    """One question per example: the row before the first that is learnt. None without labels."""
    if labels is None:
        return None
    found = []
    for example, row in enumerate(labels):
        learnt = (row != -100).nonzero().flatten()
        real = torch.ones_like(row, dtype=torch.bool)
        if mask is not None and mask.ndim == 2:
            real = mask[example, : len(row)].bool()
        first = int(learnt[0]) if len(learnt) else len(row)
        back = int(real[first:].sum()) if len(learnt) else 0
        found.append(Asked(torch.tensor([back])))
    return found


def align(
    model: LlavaForConditionalGeneration,
    inject_layer: int | Learnt = 0,
    keep_tokens: int | None = None,
    exit_layer: int | Learnt | None = None,
    *,
    filter_layer: int | None = None,
    **settings: Any,
) -> AlignedLlavaForConditionalGeneration:
    """Turns a stock LLaVA into one whose visual rows exist only in layers `inject_layer .. exit_layer - 1`.

    Modules and weights are shared with `model`, which is not to be used any more.

    Args:
        model: a `LlavaForConditionalGeneration`.
        inject_layer, keep_tokens, exit_layer, filter_layer, settings: see `Alignment`. Without `filter_layer`,
            `keep_tokens` are chosen at the layer after `inject_layer`.

    Raises:
        UnsupportedModelError: the model is not a stock LLaVA.
        ConfigError: the settings contradict each other or the model's depth.
        VisiPrunerError: a pruner is attached to the model.
    """
    if type(model) is not LlavaForConditionalGeneration:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be aligned; load a stock LlavaForConditionalGeneration (before peft)."
        )
    if keep_tokens is not None and filter_layer is None and inject_layer != "learnt":
        filter_layer = inject_layer + 1
    alignment = Alignment(
        inject_layer=inject_layer, keep_tokens=keep_tokens, exit_layer=exit_layer, filter_layer=filter_layer, **settings
    )
    alignment.check(model.config.text_config.num_hidden_layers)
    values = model.config.to_dict() | {"visual_stages": alignment.to_dict()}
    values.pop("model_type", None)
    config = AlignedLlavaConfig(**values)
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        aligned = AlignedLlavaForConditionalGeneration(config)
    return aligned._take_over(model)


def register() -> None:
    """Makes `AutoConfig` and `AutoModelForImageTextToText` know aligned models; importing the room does it."""
    AutoConfig.register(MODEL_TYPE, AlignedLlavaConfig, exist_ok=True)
    AutoModelForImageTextToText.register(AlignedLlavaConfig, AlignedLlavaForConditionalGeneration, exist_ok=True)


class AnnealGates(TrainerCallback):  # type: ignore[misc]
    """For the Hugging Face Trainer: tells the gates how far it is, and adds the depth and the tokens kept to every log.

    Works on aligned models and on peft models around them. Raises UnsupportedModelError on others.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gates_of(model).progress = state.global_step / max(state.max_steps, 1)

    def on_log(
        self, args: Any, state: Any, control: Any, model: Any = None, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        gates = gates_of(model)
        if logs is None or not state.is_local_process_zero:
            return
        found: dict[str, float] = {
            "inject_layer": gates.inject_layer,
            "exit_layer": gates.num_layers if gates.exit_layer is None else gates.exit_layer,
        }
        if gates.kept:
            found["kept_tokens"] = round(sum(gates.kept) / len(gates.kept), 2)
        logs.update(found)
        if state.log_history:  # written before callbacks are told
            state.log_history[-1].update(found)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gates_of(model).progress = 1.0


def gates_of(model: Any) -> VisualGates:
    """The gates of an aligned model, however it is wrapped. Raises UnsupportedModelError where there are none."""
    for module in model.modules():
        if isinstance(module, AlignedLlavaForConditionalGeneration):
            return module.gates
    raise UnsupportedModelError("This model is not aligned; call visipruner.training.align on it first.")
