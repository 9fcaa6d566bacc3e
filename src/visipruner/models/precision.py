"""Which of float32 and bfloat16 a processor multiplies faster."""

from __future__ import annotations

import time
from functools import cache

import torch

_ROUNDS = 12


@cache
def bfloat16_slowness() -> float:
    """Time of a matrix product in bfloat16 over that in float32 on this CPU: about a half with AMX or AVX512-BF16, much
    more than one without.

    Best of a dozen each, in turns, so that other work on the machine slows neither alone; a tenth of a second.
    """
    pairs = {
        dtype: (torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype))
        for dtype in (torch.bfloat16, torch.float32)
    }
    best = dict.fromkeys(pairs, float("inf"))
    for round_number in range(_ROUNDS):
        for dtype, (left, right) in pairs.items():
            start = time.perf_counter()
            left @ right
            if round_number:  # the first one sets up
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.bfloat16] / best[torch.float32]


def faster_dtype() -> torch.dtype:
    """bfloat16 where this CPU is clearly faster at it, else float32."""
    return torch.bfloat16 if bfloat16_slowness() < 0.8 else torch.float32
