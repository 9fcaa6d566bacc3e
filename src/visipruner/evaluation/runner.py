"""Runs methods over samples, every method on every sample, in turns; nothing finished is lost or done twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from visipruner.chat import attached, chat_inputs, greedy_reply
from visipruner.contract.pruner import Pruner
from visipruner.engine.clock import EngineClock
from visipruner.engine.image_cache import ImageCache
from visipruner.errors import ConfigError
from visipruner.evaluation import folder as files
from visipruner.evaluation.folder import SAMPLES_FILE, Record
from visipruner.evaluation.processes import Processes
from visipruner.evaluation.samples import Sample
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

    def record(self, sample: Sample, turn: int) -> Record:
        """What every method does with one sample, in an order that `turn` rotates; before the first, one answer of
        each that does not count. So neither a busy machine nor a warm cache favours one."""
        inputs = chat_inputs(self.model, self.processor, open_image(sample.image), sample.question)
        if not self._is_warm:
            for name in self.methods:
                self._give(name, inputs, 1)
            self._is_warm = True
        order = list(self.methods)
        first = turn % len(order)
        given = {name: self._give(name, inputs, self.max_new_tokens) for name in order[first:] + order[:first]}
        return {
            "key": files.key_of(sample),
            "image": sample.image_name,
            "question": sample.question,
            "answers": list(sample.answers),
            "type": sample.type,
            "id": sample.id,
            "given": {name: given[name] for name in order},
        }

    def _give(self, name: str, inputs: Mapping[str, Any], max_new_tokens: int) -> Record:
        pruner, clock = self.methods[name], EngineClock()
        with attached(self.model, pruner, inputs, clock) as turn:
            shared = turn.image_cache(self._caches[name]) if name in self._caches else nullcontext()
            with shared:
                reply = greedy_reply(self.model, self.processor.tokenizer, turn.inputs, max_new_tokens)
            trace = turn.trace
        kept = trace[0].kept[:-1]
        given = {
            "answer": reply.text,
            "tokens": reply.tokens,
            "seconds": round(reply.seconds, 5),
            "prefill_seconds": round(reply.first_token_seconds, 5),
            "selection_seconds": round(clock.selection.seconds, 6) if self._times_methods else None,
            "flops_cut": round(trace.flops_cut(0), 6),
            "visual_attention_cut": round(trace.visual_attention_cut(0), 6),
            "tokens_per_layer": [len(tokens) for tokens in kept],
        }
        if self._keep_sets:
            sets = [list(tokens) for tokens in kept]
            given["kept"] = {str(layer): now for layer, now in enumerate(sets) if layer == 0 or now != sets[layer - 1]}
        return given


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

    A record: image, question, answers, type, id, and `given`: by method answer, tokens, seconds, prefill_seconds (to
    the first token, vision tower included), selection_seconds (in the method's own code; None off the CPU), flops_cut,
    visual_attention_cut (the paper's formula), tokens_per_layer (visual tokens in each layer), and with `keep_sets`
    kept (`{layer: positions}`, where they change).

    Raises ConfigError when `folder` holds another evaluation or answers about other pictures of the same names, or an
    image cannot be read.
    """
    comparison = Comparison(model, processor, methods, max_new_tokens, share_images, keep_sets)
    if share_images:
        places = {image: place for place, image in enumerate(dict.fromkeys(sample.image for sample in samples))}
        samples = sorted(samples, key=lambda sample: places[sample.image])
    settings = {**(identity or {}), "max_new_tokens": max_new_tokens}
    settings |= {name: True for name, on in (("share_images", share_images), ("keep_sets", keep_sets)) if on}
    done = {} if folder is None else _done(folder, comparison, settings, samples, processes)
    for turn, sample in enumerate(_share(samples, done, processes)):
        record = done.get(files.key_of(sample)) if done else None
        if record is None:
            record = comparison.record(sample, turn)
            if folder is not None:
                files.append(folder, record, processes)
        yield record


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
