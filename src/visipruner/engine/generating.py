"""One run of `generate`: it reads one prompt, and without a cache every later forward repeats that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from visipruner.engine.patch import Replaced
from visipruner.engine.replay import Uncached


@dataclass(eq=False)
class Generation:
    """Attributes: `has_begun`, its first forward began, which reads its prompt; any later one either goes on with it
    or is none of its own (the unconditional one of classifier-free guidance). `prompt`: what goes on without a cache.
    `is_static`: its cache becomes static once the prompt has run. `is_compiled`: so are the steps of its answer.
    """

    has_begun: bool = False
    is_static: bool = False
    is_compiled: bool = False
    prompt: Uncached | None = None


class Generates(Protocol):
    """Whoever wants to know of the run of `generate` in its thread."""

    generation: Any


class Generating(Replaced):
    """Tells `opening` of every run of `generate` of one model, until `remove`."""

    def __init__(self, model: nn.Module, opening: Generates) -> None:
        super().__init__()
        if hasattr(type(model), "generate"):
            self.replace(model, "generate", _around(opening))


def _around(opening: Generates) -> Callable[..., Any]:
    def around(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        outer, opening.generation = opening.generation, Generation()
        try:
            return generate(*args, **kwargs)
        finally:
            opening.generation = outer

    return around
