"""One question about one picture: asked, timed, perhaps beside the dense model, and told as a plain record.

The record is the same on screen, in `--json` and in results.json.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from visipruner.accounting.record import ExampleTrace
from visipruner.chat import ChatPrompt, Reply, attached, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.trace import PruneTrace
from visipruner.models.loading import LoadedModel
from visipruner.specs import Chosen
from visipruner.words import spans

SCHEMA = "visipruner.run/1"
_MOST_STEPS = 5


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
        return pruned(loaded, pruner, prompt, max_new_tokens)
    dense: list[Reply] = []
    ours: list[Exchange] = []
    for _ in range(1 + repeats):
        dense.append(greedy_reply(loaded.model, loaded.processor.tokenizer, prompt, max_new_tokens))
        ours.append(pruned(loaded, pruner, prompt, max_new_tokens))
    return Exchange(_median([one.reply for one in ours[1:]]), ours[-1].trace, _median(dense[1:]))


def pruned(
    loaded: LoadedModel,
    pruner: Pruner,
    prompt: ChatPrompt,
    max_new_tokens: int,
    each: Callable[[str], object] | None = None,
) -> Exchange:
    """The pruned answer alone; `each` as in `greedy_reply`."""
    with attached(loaded.model, pruner, prompt) as turn:
        reply = greedy_reply(loaded.model, loaded.processor.tokenizer, turn.inputs, max_new_tokens, each)
        return Exchange(reply, turn.trace)


def _median(replies: list[Reply]) -> Reply:
    """The (greedy, hence equal) answer with the median of its times."""
    seconds = statistics.median(reply.seconds for reply in replies)
    return replace(
        replies[0],
        seconds=seconds,
        first_token_seconds=statistics.median(reply.first_token_seconds for reply in replies),
    )


@dataclass
class Answered:
    """One question about one image.

    Attributes:
        visual_tokens: visual tokens of the prompt, its picture in full size; `kept_tokens`: those left by the first
            cut, `trigger_layer` (all of them where nothing was cut but an exit may follow).
        cuts: `(layer, tokens)` of every cut: so many enter this layer, and more entered the one before.
        frozen_layers: layers in which visual tokens only gave keys and values.
        exit_layer: first layer that runs without any visual token, or None.
        flops_cut: fraction of the prompt's multiply-adds that were not done.
        visual_attention_cut: fraction of the attention to and from visual tokens that was not done.
        time_ratio: dense seconds over pruned seconds, whole answer; None without a comparison.
        overlay: name of the picture in the output folder, or None.
    """

    image: str
    question: str
    answer: str
    tokens: int
    visual_tokens: int
    kept_tokens: int
    trigger_layer: int | None
    exit_layer: int | None
    flops_cut: float
    visual_attention_cut: float
    seconds: float
    first_token_seconds: float
    dense: Reply | None = None
    same_answer: bool | None = None
    time_ratio: float | None = None
    first_token_ratio: float | None = None
    overlay: str | None = None
    cuts: list[tuple[int, int]] = field(default_factory=list)
    frozen_layers: list[int] = field(default_factory=list)

    def tokens_told(self) -> str:
        """`256 -> 64 (before the language model) -> 12 (trigger layer 14) -> 0 (exit layer 20)`."""
        steps = [str(self.visual_tokens), *(self._cut_told(*cut) for cut in self.cuts)]
        if len(steps) > _MOST_STEPS:
            steps = [*steps[:2], "...", *steps[-2:]]
        notes = ["no trigger layer"] if self.trigger_layer is None and not self.cuts else []
        if self.exit_layer is None:
            notes.append("no exit layer")
        if self.frozen_layers:
            notes.append(f"frozen in layers {spans(self.frozen_layers)}")
        return ", ".join([" -> ".join(steps), *notes])

    def _cut_told(self, layer: int, count: int) -> str:
        if layer == self.exit_layer:
            return f"0 (exit layer {layer})"
        if layer == 0:
            return f"{count} (before the language model)"
        word = "trigger" if self.trigger_layer == layer - 1 else "after"
        return f"{count} ({word} layer {layer - 1})"


def recorded(image: str, question: str, exchange: Exchange) -> Answered:
    trace, reply, dense = exchange.trace, exchange.reply, exchange.dense
    example = trace[0]
    after = 0 if example.trigger_layer is None else example.trigger_layer + 1
    result = Answered(
        image=image,
        question=question,
        answer=reply.text,
        tokens=reply.tokens,
        visual_tokens=example.dense_visual,
        kept_tokens=len(example.kept[after]) if example.num_visual else 0,
        trigger_layer=example.trigger_layer,
        exit_layer=example.exit_layer,
        flops_cut=float(trace.flops_cut(0)),
        visual_attention_cut=float(trace.visual_attention_cut(0)),
        seconds=reply.seconds,
        first_token_seconds=reply.first_token_seconds,
        cuts=_cuts(example),
        frozen_layers=example.frozen,
    )
    if dense is not None:
        result.dense = dense
        result.same_answer = dense.text == reply.text
        result.time_ratio = dense.seconds / reply.seconds
        result.first_token_ratio = dense.first_token_seconds / reply.first_token_seconds
    return result


def _cuts(example: ExampleTrace) -> list[tuple[int, int]]:
    counts = [len(kept) for kept in example.kept[:-1]]
    first = next((layer for layer, count in enumerate(counts) if count), 0)  # they may be paused at first
    before = [example.dense_visual, *counts[first:]]
    steps = zip(range(first, len(counts)), counts[first:], before, strict=False)
    return [(layer, count) for layer, count, earlier in steps if count < earlier]


def document(loaded: LoadedModel, chosen: Chosen, results: Sequence[Answered], repeats: int | None) -> dict[str, Any]:
    """Everything as JSON values, with what is needed to do it again."""
    import torch
    import transformers

    return {
        "schema": SCHEMA,
        "visipruner": version("visipruner"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "model": loaded.name,
        "dtype": loaded.dtype,
        "attn": loaded.attn,
        "method": {"name": chosen.pruner.name, "settings": chosen.pruner.settings(), "source": chosen.source},
        "timed_repeats": repeats,
        "answers": [asdict(result) for result in results],
    }
