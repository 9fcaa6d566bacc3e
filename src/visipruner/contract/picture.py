"""Methods that change the picture before there is a prompt, and not what the model does with it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from visipruner.contract.pruner import Pruner


@dataclass(frozen=True, kw_only=True)
class PictureMethod(Pruner):
    """Shows the model another picture. Use it with `visipruner.chat.attached`; `attach` refuses it."""

    @abstractmethod
    def shown(self, prompt: Any) -> Any:
        """The `visipruner.chat.ChatPrompt` that the model gets in place of `prompt`."""


def picture_methods(pruner: Pruner) -> list[PictureMethod]:
    """Those among the method and its parts (`Composed`)."""
    if isinstance(pruner, PictureMethod):
        return [pruner]
    return [found for part in getattr(pruner, "parts", ()) for found in picture_methods(part)]
