"""Generation that says given tokens: what would be predicted after each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class Dictate(LogitsProcessor):  # type: ignore[misc]
    """Makes generation say `tokens`, `[t]` long, whatever the model would rather say."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens, self._said = tokens, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._tokens[self._said]] = 0
        self._said += 1
        return forced


PLAINLY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "return_dict_in_generate": True,
    "output_logits": True,
}
"""Greedy decoding of what the model itself holds most likely: a checkpoint's own penalties would say something else
than the logits by which an altered run is judged."""


@torch.no_grad()
def greedy_logprobs(
    model: Any, inputs: Mapping[str, Any], max_new_tokens: int, dictated: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `generate` says to one prompt, or is made to say, and how likely it held every token.

    Args:
        dictated: `[t]` long, said instead of the model's own answer.

    Returns:
        tokens `[t]` long, and log-probabilities `[t, vocabulary]` float32 of the model itself, on the CPU.
    """
    forced = [] if dictated is None else [Dictate(dictated)]
    out = model.generate(
        **inputs,
        **PLAINLY,
        max_new_tokens=max_new_tokens if dictated is None else len(dictated),
        logits_processor=LogitsProcessorList(forced),
    )
    logits = torch.cat([part.float().cpu() for part in out.logits])
    return out.sequences[0, -len(out.logits) :].cpu(), logits.log_softmax(-1)
