"""Which of float32 and bfloat16 a processor multiplies faster."""

from __future__ import annotations

import time
from functools import cache

import torch


@cache
def bfloat16_slowness() -> float:
    """Time of a matrix product in bfloat16 over that in float32, best of three, on this CPU: about a half with AMX or
    AVX512-BF16, much more than one without."""

    def best(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        return min(times[1:])

    return best(torch.bfloat16) / best(torch.float32)


def faster_dtype() -> torch.dtype:
    """bfloat16 where this CPU is clearly faster at it, else float32."""
    return torch.bfloat16 if bfloat16_slowness() < 0.8 else torch.float32
