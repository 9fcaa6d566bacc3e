"""The projectors that late arms begin with, fitted to the layer they enter at; one fit serves all arms of a seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from research.guidelines.lessons import Lesson
from research.guidelines.passing import image_inputs
from research.training.sequence import Packer
from visipruner.files import write_atomic
from visipruner.training import fit_entry


def enter_at(model: Any, packer: Packer, lessons: Sequence[Lesson], layer: int, kept: Path) -> dict[str, float]:
    """Fits the projector of the plain `model` to `layer`, or takes the fit that is `kept` from before.

    Returns `seconds` that it took and the share of the rows' squares that is `unexplained`.
    """
    last = model.model.multi_modal_projector.linear_2
    if not kept.exists():
        began = time.perf_counter()
        unexplained = fit_entry(model, layer, _prompts(model, packer, lessons, layer))
        measured = {"seconds": round(time.perf_counter() - began, 1), "unexplained": round(unexplained, 4)}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, lambda part: torch.save({"projector": last.state_dict(), "measured": measured}, part))
    known = torch.load(kept, weights_only=True)
    last.load_state_dict(known["projector"])
    found: dict[str, float] = known["measured"]
    return found


def _prompts(model: Any, packer: Packer, lessons: Sequence[Lesson], layer: int) -> Iterator[dict[str, Any]]:
    """What comes before the questions is all that visual rows can see."""
    prefix = torch.tensor([packer.prefix])
    for lesson in tqdm(lessons, desc=f"fitting the projector to layer {layer}", unit="image", disable=None):
        yield {"input_ids": prefix, "use_cache": False, **image_inputs(model, lesson.features)}
