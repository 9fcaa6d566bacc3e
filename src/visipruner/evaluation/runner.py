"""Runs methods over samples, every method on every sample, in turns; nothing finished is lost or done twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from visipruner.engine.attach import attach
from visipruner.errors import ConfigError
from visipruner.files import write_json
from visipruner.prompts import chat_inputs, greedy_reply
from visipruner.pruners.base import Pruner
from visipruner.pruners.none import NoPruning
from visipruner.samples import Sample

DENSE = "dense"
SAMPLES_FILE = "samples.jsonl"
SETTINGS_FILE = "settings.json"
_FORMAT = 1

Record = dict[str, Any]


def evaluate(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    methods: Mapping[str, Pruner],
    *,
    max_new_tokens: int = 32,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Iterator[Record]:
    """Yields one record a sample, with what the dense model and every method did with it.

    The order of the methods turns from sample to sample, after one answer of each that does not count, so that
    neither a busy machine nor a warm cache favours one.

    Args:
        methods: by the name they have in tables. The dense model is added, as "dense".
        folder: `samples.jsonl` there gets one line a sample as soon as it is done; an interrupted run goes on after
            the last whole line.
        identity: what else must be equal for a run to go on (the model's name, its dtype).

    A record: image, question, answers, type, and `given`: by method answer, tokens, seconds, prefill_seconds (to the
    first token, vision tower included), flops_cut, visual_attention_cut (the paper's formula), tokens_per_layer
    (visual tokens in each layer).

    Raises ConfigError when `folder` holds another evaluation, or an image cannot be read.
    """
    if DENSE in methods:
        raise ConfigError(f"No method can be called {DENSE!r}: the dense model is always measured.")
    every: dict[str, Pruner] = {DENSE: NoPruning(), **methods}
    for pruner in every.values():
        pruner.check(model.config.get_text_config().num_hidden_layers)
    done: dict[str, Record] = {}
    if folder is not None:
        _claim(folder, every, {**(identity or {}), "max_new_tokens": max_new_tokens})
        done = _finished(folder / SAMPLES_FILE)
    is_warm = False
    order = list(every)
    for number, sample in enumerate(samples):
        key = _key(sample)
        if key in done:
            yield done[key]
            continue
        inputs = chat_inputs(model, processor, _picture(sample), sample.question)
        if not is_warm:
            for pruner in every.values():
                _give(model, processor, pruner, inputs, 1)
            is_warm = True
        turn = number % len(order)
        given = {
            name: _give(model, processor, every[name], inputs, max_new_tokens) for name in order[turn:] + order[:turn]
        }
        record = {
            "key": key,
            "image": str(sample.image),
            "question": sample.question,
            "answers": list(sample.answers),
            "type": sample.type,
            "given": {name: given[name] for name in every},
        }
        if folder is not None:
            with (folder / SAMPLES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        yield record


def _give(model: Any, processor: Any, pruner: Pruner, inputs: dict[str, Any], max_new_tokens: int) -> Record:
    with attach(model, pruner) as handle:
        reply = greedy_reply(model, processor.tokenizer, inputs, max_new_tokens)
        trace = handle.trace
    return {
        "answer": reply.text,
        "tokens": reply.tokens,
        "seconds": round(reply.seconds, 5),
        "prefill_seconds": round(reply.first_token_seconds, 5),
        "flops_cut": round(trace.flops_cut(0), 6),
        "visual_attention_cut": round(trace.visual_attention_cut(0), 6),
        "tokens_per_layer": [len(kept) for kept in trace[0].kept[:-1]],
    }


def _picture(sample: Sample) -> Image.Image:
    try:
        return Image.open(sample.image).convert("RGB")
    except OSError as error:
        raise ConfigError(f"{sample.image} cannot be read as an image ({error}).") from error


def _key(sample: Sample) -> str:
    told = json.dumps([str(sample.image), sample.question, sample.answers])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _claim(folder: Path, methods: Mapping[str, Pruner], identity: Mapping[str, Any]) -> None:
    """Marks the folder as this evaluation's, or raises where it is another's."""
    described = {name: {"method": pruner.name, "settings": pruner.settings()} for name, pruner in methods.items()}
    settings = json.loads(json.dumps({"format_version": _FORMAT, **identity, "methods": described}))
    path = folder / SETTINGS_FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*settings, *before} if before.get(key) != settings.get(key))
        if changed:
            raise ConfigError(
                f"{folder} holds an evaluation with other {', '.join(changed)}; choose another --out or delete it."
            )
    write_json(path, settings)


def _finished(path: Path) -> dict[str, Record]:
    """Whole lines by key; a line that an interruption cut off is taken out of the file."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return {record["key"]: record for record in map(json.loads, whole)}
