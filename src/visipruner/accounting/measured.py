"""What torch's flop counter sees while a model runs, in floating-point operations. Nothing is estimated from a trace.

torch counts matrix products, convolutions and fused attention, two FLOPs per multiply-add; fused attention as the full
query x key rectangle, causal or masked or not, grouped-query heads as if repeated. Its table lacks the CPU's
flash-attention kernel, which SDPA picks on CPU (with and without mask, causal, grouped-query), matrix-vector and dot
products, and the grouped product of experts; all are added here. Where SDPA falls back to plain products, those are
counted. Elementwise work is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


@dataclass
class FlopCount:
    """FLOPs by aten operator, e.g. `{"aten.mm": 1024}`. Final once the context has closed."""

    by_op: Counter[str] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """All operators together."""
        return sum(self.by_op.values())

    @property
    def macs(self) -> int:
        """Multiply-adds: half of `flops`."""
        return self.flops // 2


def _attention(query: Shape, key: Shape, value: Shape, *args: Any, **kwargs: Any) -> int:
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[-2] * (width + value[-1])


def _grouped_product(rows: Shape, matrices: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * rows[-2] * rows[-1] * matrices[-1]  # every row meets one of the matrices


def _matrix_vector(matrix: Shape, vector: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _dot(first: Shape, second: Shape, *args: Any, **kwargs: Any) -> int:
    return 2 * first[0]


def _missing_formulas() -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    experts = {aten._grouped_mm: _grouped_product} if hasattr(aten, "_grouped_mm") else {}  # not in older torch
    return {
        **experts,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten.mv: _matrix_vector,
        aten.dot: _dot,
    }


@contextmanager
def count_flops(module: torch.nn.Module | None = None) -> Iterator[FlopCount]:
    """Counts the FLOPs of everything that runs inside, or only of `module`'s forwards (say, the text decoder).

    ```python
    with count_flops(model.model.language_model) as count:
        model(**inputs)
    print(count.flops)
    ```
    The numbers arrive when the context closes. Counts for the whole batch; do not nest.
    """
    count = FlopCount()
    counter = FlopCounterMode(display=False, custom_mapping=_missing_formulas())
    handles = [] if module is None else _count_only(module, counter, count)
    try:
        with counter:
            yield count
    finally:
        for handle in handles:
            handle.remove()
    if module is None:
        count.by_op.update(_so_far(counter))


def _so_far(counter: FlopCounterMode) -> Counter[str]:
    return Counter({str(op): flops for op, flops in counter.get_flop_counts().get("Global", {}).items()})


def _count_only(module: torch.nn.Module, counter: FlopCounterMode, count: FlopCount) -> list[Any]:
    """Adds to `count` what the counter gains between the entry and the exit of `module`, failed forwards included."""
    entered: list[Counter[str]] = []

    def enter(*_: Any) -> None:
        entered.append(_so_far(counter))

    def leave(*_: Any) -> None:
        before = entered.pop()
        if not entered:
            count.by_op.update(_so_far(counter) - before)

    return [
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, always_call=True),
    ]
