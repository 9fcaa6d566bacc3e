"""A random selection of tokens: the control that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from visipruner.contract.budget import EntryPruner
from visipruner.contract.entry_view import EntryView
from visipruner.contract.pruner import About
from visipruner.contract.settings import Within

Seed = Annotated[int, Within(-(2**63), 2**64 - 1)]  # what torch's generators take


@dataclass(frozen=True, kw_only=True)
class RandomPruner(EntryPruner):
    """Keeps tokens drawn without replacement, the same places in every prompt with as many tokens.

    Attributes:
        seed: of the draw; the result does not depend on batch, device or torch's own generators.
    """

    name: ClassVar[str] = "random"
    about: ClassVar[About] = About("a random selection, a control", acts="before a layer, by default the first")

    seed: Seed = 0

    def choose(self, view: EntryView, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(view.tokens.numel(), generator=generator)[:count]
        return drawn.sort().values.to(view.tokens.device)
