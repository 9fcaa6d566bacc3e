"""Annealing and reports inside the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from visipruner.errors import UnsupportedModelError
from visipruner.training.gates import VisualGates
from visipruner.training.model import AlignedLlavaForConditionalGeneration


class AnnealGates(TrainerCallback):  # type: ignore[misc]
    """Tells the gates how far the training is, and adds the depth and the tokens kept to every log.

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
