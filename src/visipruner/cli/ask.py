"""One question about one picture: the prompt, the timed answer, and the same beside the dense model."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from visipruner.cli.models import LoadedModel
from visipruner.engine.trace import PruneTrace
from visipruner.prompts import chat_inputs
from visipruner.pruners.base import Pruner


@dataclass(frozen=True)
class Reply:
    """What a model said.

    Attributes:
        text: the answer; `tokens`: how many tokens it took.
        seconds: from the prepared prompt to the last token, image encoding included.
        first_token_seconds: the part of `seconds` up to the first token, which is where pruning can save most.
    """

    text: str
    tokens: int
    seconds: float
    first_token_seconds: float


@dataclass(frozen=True)
class Exchange:
    """A question answered with pruning, and densely too when that was asked for."""

    reply: Reply
    trace: PruneTrace
    dense: Reply | None = None


@dataclass
class _FirstToken:
    """A stopping criterion that never stops: it notes when the first token is there."""

    at: float | None = None
    never: Any = field(default=None)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.at is None:
            self.at = time.perf_counter()
            self.never = input_ids.new_zeros(input_ids.shape[0], dtype=bool)
        return self.never


def prepare(loaded: LoadedModel, picture: Image.Image, question: str) -> dict[str, Any]:
    """The chat prompt as tensors."""
    return chat_inputs(loaded.model, loaded.processor, picture, question)


def answer(loaded: LoadedModel, inputs: dict[str, Any], max_new_tokens: int) -> Reply:
    """Greedy answer of the model as it is now, pruned or not."""
    clock = _FirstToken()
    start = time.perf_counter()
    output = loaded.model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        stopping_criteria=[clock],
    )
    end = time.perf_counter()
    new = output[0, inputs["input_ids"].shape[1] :]
    text = loaded.processor.decode(new, skip_special_tokens=True).strip()
    return Reply(text, len(new), end - start, (clock.at or end) - start)


def ask(loaded: LoadedModel, pruner: Pruner, inputs: dict[str, Any], max_new_tokens: int) -> Exchange:
    """The pruned answer and what was pruned."""
    import visipruner

    with visipruner.attach(loaded.model, pruner) as handle:
        reply = answer(loaded, inputs, max_new_tokens)
        return Exchange(reply, handle.trace)


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
