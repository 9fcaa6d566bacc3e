"""How much a method changes the next token: what the offline searches of several methods go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def divergence(full: Sequence[Tensor], changed: Sequence[Tensor]) -> float:
    """Mean over examples of KL(changed || full), of log-probabilities `[batch, vocab]`.

    That is the direction of the released codes, whose thresholds were found with it: torch's `kl_div` weighs by its
    second argument, and they give it the changed model there.
    """
    pairs = zip(full, changed, strict=True)
    return float(torch.cat([(other.exp() * (other - one)).sum(-1) for one, other in pairs]).mean())


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
