"""One training of one arm: LoRA and projector, pictures in the order of their seed, checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from research.guidelines.lessons import Lesson
from research.guidelines.passing import run
from research.training.sequence import Packer
from visipruner.files import write_atomic
from visipruner.training import VisualGates
from visipruner_testbed.assembly.lora import LoraLinear


@dataclass(frozen=True)
class Pace:
    """How fast is learnt: rates of LoRA, projector and gates; the rate rises over `warmup` pictures and falls linearly
    over the last `decay` of all. `batch` pictures make a step."""

    lora_rate: float = 4e-4
    projector_rate: float = 1e-4
    gate_rate: float = 0.1
    warmup: int = 10
    decay: float = 0.5
    batch: int = 2

    def factor(self, picture: int, pictures: int) -> float:
        """The share of the rates at a picture."""
        return min(1.0, (picture + 1) / self.warmup, (pictures - picture) / (self.decay * pictures))


class Learner:
    """Trains `adapted` (LoRA by layer) and the projector of a model that has been staged."""

    def __init__(
        self, model: Any, adapted: dict[str, LoraLinear], packer: Packer, gates: VisualGates | None, pace: Pace
    ) -> None:
        self.model, self.packer, self.gates, self.pace = model, packer, gates, pace
        model.requires_grad_(False)
        groups = [
            ([p for module in adapted.values() for p in (module.lora_a, module.lora_b)], pace.lora_rate),
            (list(model.model.multi_modal_projector.parameters()), pace.projector_rate),
            ([] if gates is None else list(gates.parameters()), pace.gate_rate),
        ]
        self.parameters = [p for parameters, _ in groups for p in parameters]
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in groups if parameters],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        self.pictures_seen = 0

    def step(self, lessons: Sequence[Lesson]) -> dict[str, Any]:
        """Learns from the next batch. Returns loss, answers right before the batch was learnt from, tokens kept."""
        batch = lessons[self.pictures_seen : self.pictures_seen + self.pace.batch]
        factor = self.pace.factor(self.pictures_seen, len(lessons))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.model.train()
        if self.gates is not None:
            self.gates.train().progress = self.pictures_seen / len(lessons)
        self.optimizer.zero_grad(set_to_none=True)
        measured = self.learn(batch)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.pictures_seen += len(batch)
        return {"pictures": self.pictures_seen, **measured}

    def learn(self, batch: Sequence[Lesson]) -> dict[str, Any]:
        """Gradients of one batch, picture by picture: rows are of very different lengths."""
        rows = [self.packer.pack([list(lesson.questions)]) for lesson in batch]
        total = sum(float(row.weights.sum()) for row in rows)
        loss, right, kept = 0.0, 0, []
        for lesson, row in zip(batch, rows, strict=True):
            answers = run(self.model, lesson.features, row, len(self.packer.prefix), self.gates)
            term = answers.loss / total
            if self.gates is not None:
                term = term + self.gates.regularizer() / len(batch)
                kept += self.gates.kept
            term.backward()  # type: ignore[no-untyped-call]
            loss += answers.loss.item() / total
            right += sum(answers.right)
        found: dict[str, Any] = {
            "loss": round(loss, 4),
            "right": right,
            "questions": sum(len(lesson.questions) for lesson in batch),
        }
        if kept:
            found["kept_tokens"] = round(sum(kept) / len(kept), 2)
        if self.gates is not None and any(True for _ in self.gates.parameters()):
            found |= {"inject_layer": self.gates.inject_layer, "exit_layer": self.gates.exit_layer}
        return found

    def state(self) -> list[Tensor]:
        """Everything trained, in a fixed order."""
        return [parameter.detach() for parameter in self.parameters]

    def save(self, path: Path) -> None:
        """A checkpoint, replaced at once."""
        state = {
            "parameters": self.state(),
            "optimizer": self.optimizer.state_dict(),
            "pictures_seen": self.pictures_seen,
        }
        write_atomic(path, lambda part: torch.save(state, part))

    @torch.no_grad()
    def resume(self, path: Path) -> None:
        """Continues from a checkpoint."""
        state = torch.load(path, weights_only=True)
        for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.pictures_seen = state["pictures_seen"]
