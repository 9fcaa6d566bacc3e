"""One question about one picture: the timed answer, and the same beside the dense model."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from visipruner.chat import ChatPrompt, Reply, attached, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.models.loading import LoadedModel


@dataclass(frozen=True)
class Exchange:
    """A question answered with pruning, and densely too when that was asked for."""

    reply: Reply
    trace: PruneTrace
    dense: Reply | None = None


def exchange(
    loaded: LoadedModel, pruner: Pruner, prompt: ChatPrompt, max_new_tokens: int, repeats: int | None
) -> Exchange:
    """The pruned answer; with `repeats` the dense one in turns, so many times after one warm-up of each; seconds are
    medians.

    Taking turns keeps whatever else the machine does from favouring one side.
    """
    if repeats is None:
        return _pruned(loaded, pruner, prompt, max_new_tokens)
    dense: list[Reply] = []
    pruned: list[Exchange] = []
    for _ in range(1 + repeats):
        dense.append(greedy_reply(loaded.model, loaded.processor.tokenizer, prompt, max_new_tokens))
        pruned.append(_pruned(loaded, pruner, prompt, max_new_tokens))
    return Exchange(_median([one.reply for one in pruned[1:]]), pruned[-1].trace, _median(dense[1:]))


def _pruned(loaded: LoadedModel, pruner: Pruner, prompt: ChatPrompt, max_new_tokens: int) -> Exchange:
    with attached(loaded.model, pruner, prompt) as turn:
        reply = greedy_reply(loaded.model, loaded.processor.tokenizer, turn.inputs, max_new_tokens)
        return Exchange(reply, turn.trace)


def _median(replies: list[Reply]) -> Reply:
    """The (greedy, hence equal) answer with the median of its times."""
    return Reply(
        replies[0].text,
        replies[0].tokens,
        statistics.median(reply.seconds for reply in replies),
        statistics.median(reply.first_token_seconds for reply in replies),
    )
