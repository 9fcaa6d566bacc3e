"""What a training step and an answer of each arm cost: seconds, FLOPs counted by torch, bytes.

Seconds are taken in rounds, each arm once a round, in another order each time: what ran before decides how warm the
caches and the allocator are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from research.guidelines.arms import PRUNED, Arm, staged
from research.guidelines.learner import Learner, Pace
from research.guidelines.lessons import Lesson
from research.guidelines.passing import image_inputs
from research.training.sequence import Packer
from visipruner.accounting import count_flops
from visipruner.accounting.exact import dense_macs, prompt_macs
from visipruner.accounting.kv import dense_kv_bytes, expected_kv_bytes
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.models.shape import ModelShape
from visipruner_testbed.assembly.lora import LoraLinear

T = TypeVar("T")


def training_costs(
    model: Any, adapted: dict[str, LoraLinear], packer: Packer, arms: Sequence[Arm], lesson: Lesson, rounds: int
) -> dict[str, dict[str, float]]:
    """Per arm, for one picture with all its questions, forward and backward:

    `seconds` (median of `rounds`, after one that does not count), `flops` (counted by torch, attention
    as plain products), `activation_bytes` (what is kept for the backward pass, each storage once).
    """
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    found: dict[str, dict[str, float]] = {}
    for turn in range(rounds + 1):
        for arm in _shuffled(arms, turn):
            with staged(model, arm) as (_, gates):
                learner = Learner(model, adapted, packer, gates, Pace())
                model.train()
                if gates is not None:
                    gates.train().progress = 0.0
                if turn == 0:
                    found[arm.name] = _counted(learner, lesson)
                    continue
                began = time.perf_counter()
                learner.learn([lesson])
                seconds[arm.name].append(time.perf_counter() - began)
                learner.optimizer.zero_grad(set_to_none=True)
    model.eval()
    return {name: {"seconds": median(taken), **found[name]} for name, taken in seconds.items()}


def _counted(learner: Learner, lesson: Lesson) -> dict[str, float]:
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}
    with sdpa_kernel(SDPBackend.MATH), count_flops() as count:
        learner.learn([lesson])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner.learn([lesson])
    learner.optimizer.zero_grad(set_to_none=True)
    return {
        "flops": float(count.flops),
        "activation_bytes": float(sum(size for place, size in saved.items() if place not in weights)),
    }


def inference_costs(
    model: Any, arms: Sequence[Arm], pruner: Pruner | None, features: torch.Tensor, prompt: torch.Tensor, rounds: int
) -> dict[str, dict[str, float]]:
    """Per arm, for the prompt `[n]` of one question: `seconds` to the first token without the vision tower (median),
    exact decoder `flops`, `kv_bytes` left in the cache."""
    model.eval()
    shape = ModelShape.from_config(model.config)
    openings = _openings(model, arms, pruner)
    seconds: dict[str, list[float]] = {name: [] for name, _ in openings}
    found: dict[str, dict[str, float]] = {}
    for turn in range(rounds + 1):
        for name, opened in _shuffled(openings, turn):
            with opened() as attached, torch.inference_mode():
                handle, gates = attached if isinstance(attached, tuple) else (attached, None)
                if gates is not None:
                    gates.eval()
                began = time.perf_counter()
                model(input_ids=prompt[None], use_cache=True, logits_to_keep=1, **image_inputs(model, features))
                seconds[name].append(time.perf_counter() - began)
                found[name] = _exact(shape, handle, len(prompt))
    return {name: {"seconds": median(taken[1:]), **found[name]} for name, taken in seconds.items()}


def _shuffled(items: Sequence[T], turn: int) -> list[T]:
    return random.Random(turn).sample(items, len(items))


def _openings(
    model: Any, arms: Sequence[Arm], pruner: Pruner | None
) -> list[tuple[str, Callable[[], AbstractContextManager[Any]]]]:
    openings: list[tuple[str, Callable[[], AbstractContextManager[Any]]]] = [
        (arm.name, partial(staged, model, arm)) for arm in arms
    ]
    if pruner is not None:
        openings.append((PRUNED, partial(attach, model, pruner)))
    return openings


def _exact(shape: ModelShape, handle: Any, length: int) -> dict[str, float]:
    if handle is None:
        macs, kv = dense_macs(shape, length, 1), dense_kv_bytes(shape, length, 4)
    else:
        example = handle.trace[0]
        macs, kv = prompt_macs(shape, example, 1), expected_kv_bytes(shape, example.key_lengths, 4)
    return {"flops": float(macs.flops), "kv_bytes": float(kv)}
