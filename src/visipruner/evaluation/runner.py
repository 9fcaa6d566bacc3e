"""Runs methods over samples, every method on every sample, in turns; nothing finished is lost or done twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from visipruner.chat import (
    ChatPrompt,
    Reply,
    answers_in_batches,
    attached,
    batch_inputs,
    chat_inputs,
    greedy_replies,
    greedy_reply,
    picture_question,
)
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import attach
from visipruner.engine.clock import EngineClock
from visipruner.engine.image_cache import ImageCache
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError
from visipruner.evaluation import folder as files
from visipruner.evaluation.folder import SAMPLES_FILE, Processes, Record
from visipruner.evaluation.samples import Sample, critical_tokens, share_left
from visipruner.images import open_image
from visipruner.pruners.none import NoPruning

DENSE = "dense"
_ALONE = Processes()


class Comparison:
    """A model and the methods to compare on it, the dense one added as "dense".

    Args:
        share_images: questions about one image that follow each other share the work on it (`handle.image_cache`);
            times and FLOPs are then those of what was left to do.
        keep_sets: records also say which visual tokens each layer had.

    Raises ConfigError for a method that cannot run on the model's number of layers, or is called "dense".
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        methods: Mapping[str, Pruner],
        max_new_tokens: int = 32,
        share_images: bool = False,
        keep_sets: bool = False,
    ) -> None:
        if DENSE in methods:
            raise ConfigError(f"No method can be called {DENSE!r}: the dense model is always measured.")
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.methods: dict[str, Pruner] = {DENSE: NoPruning(), **methods}
        self._is_warm = False
        self._times_methods = torch.device(model.device).type == "cpu"  # as `EngineClock` says
        self._keep_sets = keep_sets
        self._caches = {name: ImageCache() for name in self.methods} if share_images else {}
        for pruner in self.methods.values():
            pruner.check(model.config.get_text_config().num_hidden_layers)

    def records(self, samples: Sequence[Sample], turn: int) -> list[Record]:
        """What every method does with some samples, answered as one batch, in an order that `turn` rotates; before the
        first, one answer of each that does not count. So neither a busy machine nor a warm cache favours one."""
        prompts = _Prompts(self.model, self.processor, samples)
        if not self._is_warm:
            for name in self.methods:
                self._give(name, prompts, 1)
            self._is_warm = True
        order = list(self.methods)
        first = turn % len(order)
        given = {name: self._give(name, prompts, self.max_new_tokens) for name in order[first:] + order[:first]}
        return [
            {
                "key": files.key_of(sample),
                "image": sample.image_name,
                "question": sample.question,
                "answers": list(sample.answers),
                "type": sample.type,
                "id": sample.id,
                "given": {name: given[name][number] for name in order},
            }
            for number, sample in enumerate(samples)
        ]

    def _give(self, name: str, prompts: _Prompts, max_new_tokens: int) -> list[Record]:
        if prompts.is_batch and answers_in_batches(self.methods[name], prompts.questions):
            return self._together(name, prompts, max_new_tokens)
        both = zip(prompts.samples, prompts.alone, strict=True)
        return [self._alone(name, sample, prompt, max_new_tokens) for sample, prompt in both]

    def _alone(self, name: str, sample: Sample, prompt: ChatPrompt, max_new_tokens: int) -> Record:
        clock = EngineClock()
        with attached(self.model, self.methods[name], prompt, clock) as turn:
            shared = turn.image_cache(self._caches[name]) if name in self._caches else nullcontext()
            with shared:
                reply = greedy_reply(self.model, self.processor.tokenizer, turn.inputs, max_new_tokens)
            return self._given(sample, reply, turn.trace, 0, clock.selection.seconds)

    def _together(self, name: str, prompts: _Prompts, max_new_tokens: int) -> list[Record]:
        clock = EngineClock()
        with attach(self.model, self.methods[name], clock=clock) as handle:
            replies = greedy_replies(self.model, self.processor.tokenizer, prompts.together, max_new_tokens)
            trace, spent = handle.trace, clock.selection.seconds / len(replies)
            both = zip(prompts.samples, replies, strict=True)
            return [self._given(sample, reply, trace, number, spent) for number, (sample, reply) in enumerate(both)]

    def _given(self, sample: Sample, reply: Reply, trace: PruneTrace, number: int, selection_seconds: float) -> Record:
        """What a record says of one method's answer, which is of the trace's example `number`."""
        kept = trace[number].kept[:-1]
        given = {
            "answer": reply.text,
            "tokens": reply.tokens,
            "seconds": round(reply.seconds, 5),
            "prefill_seconds": round(reply.first_token_seconds, 5),
            "selection_seconds": round(selection_seconds, 6) if self._times_methods else None,
            "flops_cut": round(trace.flops_cut(number), 6),
            "visual_attention_cut": round(trace.visual_attention_cut(number), 6),
            "tokens_per_layer": [len(tokens) for tokens in kept],
        }
        if critical := critical_tokens(sample, trace[number]):
            given["critical_left"] = [round(share, 4) for share in share_left(critical, trace[number])]
        if self._keep_sets:
            sets = [list(tokens) for tokens in kept]
            given["kept"] = {str(layer): now for layer, now in enumerate(sets) if layer == 0 or now != sets[layer - 1]}
        return given


class _Prompts:
    """Some samples as prompts of their own and as one batch, each made when a method first wants it."""

    def __init__(self, model: Any, processor: Any, samples: Sequence[Sample]) -> None:
        self._model, self._processor = model, processor
        self._pictures = [open_image(sample.image) for sample in samples]
        self.samples = samples
        self.questions = [sample.question for sample in samples]

    @property
    def is_batch(self) -> bool:
        return len(self.questions) > 1

    @cached_property
    def alone(self) -> list[ChatPrompt]:
        return [chat_inputs(self._model, self._processor, *asked) for asked in self._asked()]

    @cached_property
    def together(self) -> dict[str, Any]:
        conversations = [picture_question(*asked) for asked in self._asked()]
        return batch_inputs(self._model, self._processor, conversations)

    def _asked(self) -> list[tuple[Any, str]]:
        return list(zip(self._pictures, self.questions, strict=True))


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    methods: Mapping[str, Pruner],
    *,
    max_new_tokens: int = 32,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    processes: Processes = _ALONE,
    share_images: bool = False,
    keep_sets: bool = False,
    batch_size: int = 1,
) -> Iterator[Record]:
    """Yields one record a sample, with what the dense model and every method did with it.

    The order of the methods turns from sample to sample, after one answer of each that does not count.

    Args:
        methods: by the name they have in tables. The dense model is added, as "dense".
        folder: `samples.jsonl` there gets one line a sample as soon as it is done; an interrupted run goes on after
            the last whole line.
        identity: what else must be equal for a run to go on (the model's name, its dtype, the data).
        processes: with several, this one answers and yields only its share; when all have, `folder.join` has the
            records of all. `folder` must be given and be the same for all.
        share_images, keep_sets: as `Comparison` says; samples that share an image are answered one after the other.
        batch_size: so many samples are answered as one batch, and each has an equal share of its seconds. Methods that
            read the question or change the picture answer one by one all the same.

    A record: image, question, answers, type, id, and `given`: by method answer, tokens, seconds, prefill_seconds (to
    the first token, vision tower included), selection_seconds (in the method's own code; None off the CPU), flops_cut,
    visual_attention_cut (the paper's formula), tokens_per_layer (visual tokens in each layer), where it is known which
    tokens hold the answer critical_left (by layer the share of them that it had), and with `keep_sets` kept (`{layer:
    positions}`, where they change).

    Raises ConfigError when `folder` holds another evaluation or answers about other pictures of the same names, an
    image cannot be read, or prompts of a batch would have to share images.
    """
    if share_images and batch_size > 1:
        raise ConfigError("Prompts of a batch share no image: leave out share_images, or batch_size.")
    comparison = Comparison(model, processor, methods, max_new_tokens, share_images, keep_sets)
    if share_images:
        places = {image: place for place, image in enumerate(dict.fromkeys(sample.image for sample in samples))}
        samples = sorted(samples, key=lambda sample: places[sample.image])
    settings = {**(identity or {}), "max_new_tokens": max_new_tokens}
    settings |= {name: True for name, on in (("share_images", share_images), ("keep_sets", keep_sets)) if on}
    settings |= {"batch_size": batch_size} if batch_size > 1 else {}
    done = {} if folder is None else _done(folder, comparison, settings, samples, processes)
    mine = _share(samples, done, processes)
    for turn, start in enumerate(range(0, len(mine), batch_size)):
        batch = mine[start : start + batch_size]
        known = [done.get(files.key_of(sample)) if done else None for sample in batch]
        asked = [sample for sample, record in zip(batch, known, strict=True) if record is None]
        answered = comparison.records(asked, turn) if asked else []
        if folder is not None:
            for record in answered:
                files.append(folder, record, processes)
        new = iter(answered)
        yield from (next(new) if record is None else record for record in known)


def _done(
    folder: Path, comparison: Comparison, settings: Mapping[str, Any], samples: Sequence[Sample], processes: Processes
) -> dict[str, Record]:
    """What an earlier run left in the folder, which is this evaluation's from now on."""
    if processes.is_main:
        files.claim(folder, comparison.methods, settings)
        files.join(folder, samples)
    processes.wait()
    if not processes.is_main:
        files.claim(folder, comparison.methods, settings)
    return files.finished(folder / SAMPLES_FILE)


def _share(samples: Sequence[Sample], done: Mapping[str, Record], processes: Processes) -> list[Sample]:
    """What falls to this process: as many of the open samples as to any other, and of the finished ones too."""
    is_done = [bool(done) and files.key_of(sample) in done for sample in samples]
    mine: list[int] = []
    for state in (True, False):
        numbers = [number for number, this in enumerate(is_done) if this == state]
        mine += numbers[processes.rank :: processes.count]
    return [samples[number] for number in sorted(mine)]
