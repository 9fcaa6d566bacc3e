"""Runs of a model with one method after another, for methods whose settings are searched for on a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.host import depth_of
from visipruner.errors import ConfigError


class Trials:
    """A model and some prompts to try methods on.

    Args:
        prompts: keyword arguments of forward calls. visual_mask: as in `attach`.

    Attributes:
        depth: layers of the model's text decoder.

    Raises ConfigError when there are no prompts, UnsupportedModelError for models without a decoder.
    """

    def __init__(
        self, model: nn.Module, prompts: Iterable[Mapping[str, Any]], visual_mask: Tensor | None = None
    ) -> None:
        self._model, self._calls, self._mask = model, list(prompts), visual_mask
        if not self._calls:
            raise ConfigError("Settings are searched for on prompts; give at least one prompt.")
        self.depth = depth_of(model)

    def run(self, pruner: Pruner) -> None:
        """Reads every prompt with `pruner` attached."""
        with attach(self._model, pruner, self._mask), torch.no_grad():
            for call in self._calls:
                self._model(**call)

    def plain(self) -> list[Tensor]:
        """Per prompt the next token's log-probabilities `[batch, vocab]` in the plain model."""
        return [next_token(self._model, call) for call in self._calls]

    def pruned(self, pruner: Pruner) -> list[Tensor]:
        """The same with `pruner` attached."""
        with attach(self._model, pruner, self._mask):
            return self.plain()


def next_token(model: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """`[batch, vocab]` log-probabilities after each example's last row."""
    with torch.no_grad():
        logits = model(**call).logits
    mask = call.get("attention_mask")
    if mask is None:
        last = torch.full((len(logits),), logits.shape[1] - 1, device=logits.device)
    else:
        last = (mask.cumsum(-1) * mask).argmax(-1)
    chosen = logits[torch.arange(len(logits), device=logits.device), last]
    return torch.log_softmax(chosen.float(), -1)


def divergence(full: Sequence[Tensor], changed: Sequence[Tensor]) -> float:
    """Mean over examples of KL(changed || full), of log-probabilities `[batch, vocab]`.

    That is the direction of the released codes of VTW and ShortV, whose thresholds were found with it: torch's `kl_div`
    weighs by its second argument, and they give it the changed model there.
    """
    pairs = zip(full, changed, strict=True)
    return float(torch.cat([(other.exp() * (other - one)).sum(-1) for one, other in pairs]).mean())
