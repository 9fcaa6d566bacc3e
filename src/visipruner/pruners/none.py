"""No pruning: the control every table needs. The plain model, recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from visipruner.contract.pruner import About, Pruner


@dataclass(frozen=True, kw_only=True)
class NoPruning(Pruner):
    """Keeps every token in every layer; the output is the plain model's to the last bit."""

    name: ClassVar[str] = "none"
    about: ClassVar[About] = About("the plain model, recorded")
