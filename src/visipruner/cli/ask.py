"""One question about one picture: the prompt, the timed answer, and the same beside the dense model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from visipruner.chat import ChatPrompt, Reply, attached, chat_inputs, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.models.loading import LoadedModel


@dataclass(frozen=True)
class Exchange:
    """A question answered with pruning, and densely too when that was asked for."""

    reply: Reply
    trace: PruneTrace
    dense: Reply | None = None


def prepare(loaded: LoadedModel, picture: Image.Image, question: str) -> ChatPrompt:
    """The chat prompt as tensors."""
    return chat_inputs(loaded.model, loaded.processor, picture, question)


def answer(loaded: LoadedModel, inputs: Mapping[str, Any], max_new_tokens: int) -> Reply:
    """Greedy answer of the model as it is now, pruned or not."""
    return greedy_reply(loaded.model, loaded.processor.tokenizer, inputs, max_new_tokens)


def ask(loaded: LoadedModel, pruner: Pruner, inputs: dict[str, Any], max_new_tokens: int) -> Exchange:
    """The pruned answer and what was pruned."""
    with attached(loaded.model, pruner, inputs) as turn:
        reply = answer(loaded, turn.inputs, max_new_tokens)
        return Exchange(reply, turn.trace)


def compare(loaded: LoadedModel, pruner: Pruner, inputs: dict[str, Any], max_new_tokens: int, repeats: int) -> Exchange:
    """Pruned and dense answers in turn, `repeats` times after one warm-up of each; seconds are medians.

    Taking turns keeps whatever else the machine does from favouring one side.
    """
    pruned: list[Reply] = []
    dense: list[Reply] = []
    for _ in range(1 + repeats):
        dense.append(answer(loaded, inputs, max_new_tokens))
        exchange = ask(loaded, pruner, inputs, max_new_tokens)
        pruned.append(exchange.reply)
    return Exchange(_median(pruned[1:]), exchange.trace, _median(dense[1:]))


def _median(replies: list[Reply]) -> Reply:
    """The (greedy, hence equal) answer with the median of its times."""
    return Reply(
        replies[0].text,
        replies[0].tokens,
        statistics.median(reply.seconds for reply in replies),
        statistics.median(reply.first_token_seconds for reply in replies),
    )
