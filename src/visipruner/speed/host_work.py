"""What pruning costs the host: tensor operations and reads from the device, counted on a tiny decoder without a clock.

On a GPU every operation is a kernel launch and every read waits until the device has caught up, so at the sizes where
pruning is used both must stay near the plain model's. The counts are exact and the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.calls import cache_of

LAYERS, WIDTH = 32, 64
BEFORE, VISUAL, AFTER = 35, 64, 13  # rows of a prompt
BATCH = 8
MODEL = {
    "name": "32 tiny Llama layers",
    "dtype": "float32",
    "rows": [BEFORE, VISUAL, AFTER],
    "batch": BATCH,
    "notes": ["counts, no seconds"],
}
# What waits for a device, as torch calls it below and above its dispatcher.
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
_READ_METHODS = (Tensor.tolist, Tensor.numpy)


@dataclass(frozen=True)
class HostWork:
    """Counts of one method.

    Attributes:
        prefill, decode: tensor operations of a prompt of one example, and of one more token.
        prefill_ratio, decode_ratio: the same over the plain model's.
        reads: reads from the device in the prefill.
        batch_ratio: operations of a prefill of 8 unlike padded examples over those of one example.
    """

    method: str
    prefill: int
    decode: int
    prefill_ratio: float
    decode_ratio: float
    reads: int
    batch_ratio: float


@dataclass(frozen=True)
class Bound:
    """What a method may take at most: see `HostWork`."""

    prefill: float
    reads: int
    batch: float
    decode: float = 1.01


# A prompt takes one read: which of its rows are visual. Detection reads once a layer that it looks at, and once for the
# tokens that it keeps.
BOUNDS = {
    "NoPruning": Bound(1.03, 1, 1.5),
    "FastV": Bound(1.12, 1, 1.5),
    "DivPrune": Bound(1.12, 1, 1.5),
    "schedule": Bound(1.12, 1, 1.5),
    "VisiPruner, fixed layers": Bound(1.12, 1, 1.5),
    "VisiPruner, fixed layers and shallow stage": Bound(1.25, 1, 1.5),
    "VisiPruner, detecting": Bound(1.25, 3, 1.5),
}


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.reads = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        self.reads += function._schema.name in _READS
        return function(*args, **(kwargs or {}))


class _Reads(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += function in _READ_METHODS
        return function(*args, **(kwargs or {}))


def methods() -> dict[str, Pruner | None]:
    """What is counted, by name; None is the plain model."""
    from visipruner import DivPrune, FastV, FixedSchedule, NoPruning, VisiPruner

    fixed = VisiPruner(filter_layer=14, keep_tokens=10, exit_layer=20)
    return {
        "plain": None,
        "NoPruning": NoPruning(),
        "FastV": FastV(layer=2, keep_ratio=0.5),
        "DivPrune": DivPrune(keep_tokens=16),
        "schedule": FixedSchedule(layers=(2, 16), keep=(32, 8)),
        "VisiPruner, fixed layers": replace(fixed, stages=("middle", "deep")),
        "VisiPruner, fixed layers and shallow stage": fixed,
        "VisiPruner, detecting": VisiPruner(),
    }


def count(progress: Callable[[str], object] = lambda _: None) -> list[HostWork]:
    """Counts every one of `methods`; `progress` is told its name."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=256,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    found: list[HostWork] = []
    for name, pruner in methods().items():
        progress(name)
        prefill, reads, decode = _counted(model, pruner, 1)
        batch, _, _ = _counted(model, pruner, BATCH)
        plain = found[0] if found else None
        over = (prefill / plain.prefill, decode / plain.decode) if plain else (1.0, 1.0)
        found.append(HostWork(name, prefill, decode, *over, reads, batch / prefill))
    return found


@torch.no_grad()
def _counted(model: Any, pruner: Pruner | None, batch: int) -> tuple[int, int, int]:
    """Operations and reads of a prefill, and operations of a decode step, of `batch` examples of unlike length."""
    inputs, mask = _prompt(batch)
    with nullcontext() if pruner is None else attach(model, pruner, mask):
        if batch == 1:  # what is made once, and not for every prompt
            model(**inputs, use_cache=True)
        with _Reads() as read, _Operations() as prefill:
            out = model(**inputs, use_cache=True)
        following = {"input_ids": torch.full((batch, 1), 5), "cache": cache_of(out), "use_cache": True}
        if "attention_mask" in inputs:
            following["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        with _Operations() as decode:
            model(**following)
    return prefill.count, prefill.reads + read.count, decode.count


def _prompt(batch: int) -> tuple[dict[str, Tensor], Tensor]:
    """A prompt's arguments and its visual mask `[batch, seq]`; examples of a batch are padded on the left."""
    seq = BEFORE + VISUAL + AFTER
    inputs = {"inputs_embeds": torch.randn(batch, seq, WIDTH)}
    visual = torch.zeros(batch, seq, dtype=torch.bool)
    visual[:, BEFORE : BEFORE + VISUAL] = True
    if batch > 1:
        padding = torch.arange(batch)[:, None] * 2
        inputs["attention_mask"] = (torch.arange(seq)[None] >= padding).long()
    return inputs, visual
