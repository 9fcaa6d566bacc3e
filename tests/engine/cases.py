"""The pruners that every invariant is tested with, tuned so that each really prunes the tiny models; and decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.models import IMAGE_TOKEN, LAYERS, llava_model
from visipruner import FixedSchedule, Pruner, PruneTrace, VisiPruner, attach
from visipruner.contract.picture import PictureMethod
from visipruner.pruners.composed import Composed
from visipruner.pruners.dycoke import DyCoke
from visipruner.pruners.evs import EVS
from visipruner.pruners.ivc import IVC
from visipruner.pruners.registry import available, method_class
from visipruner.pruners.shortv import ShortV

_DETECT = {"filter_threshold": 0.99999, "token_threshold": 0.15, "relative": True, "exit_threshold": 0.99}

PRUNERS: dict[str, Pruner] = {
    "schedule": FixedSchedule(layers=(1, 3), keep=(5, 0)),
    "schedule-some-stay": FixedSchedule(layers=(0, 2), keep=(9, 3)),
    "middle-deep": VisiPruner(stages=("middle", "deep"), shallow_end=0, exit_votes=1, **_DETECT),
    "prefix": VisiPruner(shallow_end=2, exit_votes=1, **_DETECT),
    "ffn": VisiPruner(shallow_end=2, shallow_visual="ffn", exit_votes=1, **_DETECT),
    "shallow-only": VisiPruner(stages=("shallow",), shallow_end=3),
    "frozen": Composed(parts=(ShortV(layers=(0, 2, 3)), FixedSchedule(layers=(2, 4), keep=(9, 3)))),
    "budget": VisiPruner(shallow_end=2, filter_layer=3, keep_tokens=4, exit_layer=5),
}
KEEPS_EVERYTHING: dict[str, Pruner] = {
    "never-triggers": VisiPruner(stages=("middle", "deep"), shallow_end=0, filter_threshold=-1.0),
    "keeps-all": VisiPruner(stages=("middle",), filter_layer=2, keep_tokens=10_000),
    "schedule-keeps-all": FixedSchedule(layers=(1,), keep=(10_000,)),
}

# Every method of the registry that is attached to a model, a new one too, with its published settings at the tiny
# models' depth.
_BY_HAND = {"none", "schedule", "shortv", "visipruner", "visipruner-reference"}
_FITTED: dict[str, Pruner] = {  # to pictures of 16 tokens, and to another method
    "dycoke": DyCoke(frame_tokens=4),
    "evs": EVS(frame_tokens=4, keep_ratio=0.5),
    "ivc": Composed(parts=(IVC(coordinates=0.25), method_class("fastv").for_depth(LAYERS))),
}
METHODS: dict[str, Pruner] = {
    **PRUNERS,
    **{
        name: method_class(name).for_depth(LAYERS)
        for name in available()
        if name not in _BY_HAND and not issubclass(method_class(name), PictureMethod)
        if not method_class(name).reads_states  # which these models have none of
    },
    **_FITTED,
}
# Those whose rows are the plain model's own, so that dropping rows is cutting edges.
SELECTS = {name: pruner for name, pruner in METHODS.items() if not pruner.merges}
_Cell = tuple[str, ...]


def cells(full: Sequence[_Cell], few: Sequence[_Cell], methods: Iterable[str] = METHODS) -> list[_Cell]:
    """`(method, *cell)`: every cell for the pruners tuned by hand, a few for all the others."""
    return [(name, *cell) for name in methods for cell in (full if name in PRUNERS else few)]


# One of each way to leave: for what depends on the way, not on the method.
WAYS = {**PRUNERS, **{name: METHODS[name] for name in ("random", "pyramiddrop", "sparsevlm", "visionzip")}}


def generate(model: Any, steps: int, **inputs: Any) -> Any:
    """What greedy decoding of exactly `steps` tokens returns, with `logits` of each; never an image token."""
    return model.generate(
        **inputs,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        suppress_tokens=[IMAGE_TOKEN],
        output_logits=True,
        return_dict_in_generate=True,
    )


def agrees_with_sdpa(
    with_kernel: Callable[[Any], Any], pruner: Pruner, inputs: dict[str, Any], text: str = "llama", **settings: Any
) -> None:
    """A LLaVA that `with_kernel` gave another attention kernel answers and keeps as with sdpa."""

    def answers(model: Any) -> tuple[Tensor, PruneTrace]:
        with attach(model, pruner) as handle, torch.no_grad():
            output = generate(model, 4, **inputs, **settings)
            return torch.stack(output.logits, 1), handle.trace

    logits, trace = answers(llava_model("clip", text))
    other, other_trace = answers(with_kernel(llava_model("clip", text)))
    torch.testing.assert_close(other, logits, atol=2e-5, rtol=1e-4)
    assert other_trace.kept == trace.kept
    assert other_trace.key_lengths == trace.key_lengths


def two_turns(model: Any, first: dict[str, Any], second: dict[str, Any]) -> tuple[Tensor, Any]:
    """Logits of the second turn, and the cache; padding takes no position."""
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    positions, begun = (mask.cumsum(1) - 1).clamp(min=0), first["input_ids"].shape[1]
    cache = model(**first, position_ids=positions[:, :begun], use_cache=True).past_key_values
    second = {**second, "attention_mask": mask, "position_ids": positions[:, begun:]}
    return model(**second, past_key_values=cache).logits, cache
