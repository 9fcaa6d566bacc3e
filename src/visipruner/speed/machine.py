"""The machine that is measured on: its room, its load, whether it swaps; and the memory that a piece of work took."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from visipruner.errors import VisiPrunerError

_SPARE = 1 << 30  # left to everything else on the machine
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MachineError(VisiPrunerError):
    """This machine cannot measure reliably now."""


def check_room(needed: int, what: str) -> None:
    """Raises MachineError where fewer than `needed` bytes are free, with some to spare."""
    free = free_bytes()
    if needed > free:
        raise MachineError(
            f"{what} needs about {gigabytes(needed)} and {gigabytes(free + _SPARE)} are free, so the machine would "
            "swap; close other programs, or take a smaller --shape, fewer --visual tokens, or --tie-layers."
        )


def free_bytes() -> int:
    """Memory that new work can have without swapping."""
    return int(psutil.virtual_memory().available) - _SPARE


def swapped_bytes() -> int:
    """Bytes that this machine wrote to swap since it started."""
    return int(psutil.swap_memory().sout)


def check_no_swapping(before: int) -> None:
    """Raises MachineError where the machine swapped since `swapped_bytes()` was `before`."""
    if swapped_bytes() > before:
        raise MachineError(
            "The machine swapped during the measurement, so its times mean nothing; close other programs or measure "
            "something smaller."
        )


def busy_warning() -> str | None:
    """A sentence where other work keeps a good part of the processors busy, else None."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load < 0.5 * cores:
        return None
    return f"The machine is busy (load average {load:.1f} on {cores} processors); expect wide spreads."


def describe() -> dict[str, Any]:
    """What a reader needs to know of the machine; neither its name nor its paths."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("visipruner", "torch", "transformers")},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


@dataclass
class PeakMemory:
    """Filled when its context closes. `added`: most bytes held at once beyond those held at the start, or None where
    the system cannot say."""

    added: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measures the peak of what the work inside adds: resident memory of the process (Linux), or CUDA's allocations."""
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.added = torch.cuda.max_memory_allocated(device) - before
        return
    can_tell = _reset_peak()
    before = int(psutil.Process().memory_info().rss)
    yield peak
    if can_tell:
        highest = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        peak.added = max(0, (int(highest.split()[1]) << 10) - before)


def _reset_peak() -> bool:
    """Gives memory back that nobody uses, and makes the kernel forget the highest resident size so far."""
    if sys.platform != "linux":
        return False
    with suppress(OSError, AttributeError):  # another C library; what it keeps makes peaks look smaller
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def gigabytes(count: float) -> str:
    """`"13.5 GB"`."""
    return f"{count / 1e9:.1f} GB"
