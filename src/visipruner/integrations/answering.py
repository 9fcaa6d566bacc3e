"""A model with a method on it that answers chat messages: all that an evaluation harness wants of us."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visipruner.chat import answers_in_batches, batch_inputs, greedy_replies, message_inputs
from visipruner.engine.attach import attach
from visipruner.errors import ConfigError
from visipruner.models import loading as models
from visipruner.specs import DEFAULT, adjusted, resolve

_READS = {"text", "image"}
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What was said, in how many tokens, and the share of the decoder's FLOPs that was not spent on the prompt."""

    text: str
    tokens: int
    flops_cut: float


class Answerer:
    """Loads a model and puts a method on it.

    Args:
        pretrained: a folder, a hub id (one that is not cached needs `allow_download`), or a packaged model's name.
        method: as `visipruner eval --method` takes it; "none" prunes nothing.
        settings: of a bare method, as a mapping or as JSON, those that are to be changed.
        config: a saved pruner.json (or its folder) instead of both.
        dtype, attn: precision of the weights and attention implementation. device: where to, as torch names it.

    Raises VisiPrunerError with a sentence for the user.
    """

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        settings: Mapping[str, Any] | str | None = None,
        config: str | None = None,
        dtype: str = "auto",
        attn: str = "sdpa",
        device: str | None = None,
        allow_download: bool = False,
    ) -> None:
        given = _parsed(settings)
        if config is not None and (method is not None or given):
            raise ConfigError("config holds the method and all its settings; leave out method and settings.")
        models.check_name(pretrained)
        models.prepare(pretrained)
        loaded = models.load(pretrained, dtype, attn, allow_download)
        self.model = loaded.model if device is None else loaded.model.to(device)
        self.processor = loaded.processor
        spec = DEFAULT if method is None else method
        if config is not None:
            chosen = resolve(Path(config), pretrained, loaded.num_layers)
        else:
            chosen = adjusted(spec, given, pretrained, loaded.num_layers)
        self.pruner = chosen.pruner
        self.pruner.check(loaded.num_layers)

    def answer(self, messages: Messages, max_new_tokens: int) -> Answer:
        """The greedy answer to a conversation in transformers' form, its images as PIL images.

        Raises ConfigError for parts that are neither text nor images.
        """
        return self.answers([messages], max_new_tokens)[0]

    def answers(self, conversations: Sequence[Messages], max_new_tokens: int) -> list[Answer]:
        """Those to several conversations as one batch, each what it would be alone; one by one with a method that reads
        the question. Raises as `answer` does, and where the tokenizer has no padding token."""
        for messages in conversations:
            _check_parts(messages)
        questions = [_question(messages) for messages in conversations]
        if len(conversations) > 1 and not answers_in_batches(self.pruner, questions):
            return [self.answer(messages, max_new_tokens) for messages in conversations]
        if len(conversations) == 1:
            inputs = message_inputs(self.model, self.processor, conversations[0])
        else:
            inputs = batch_inputs(self.model, self.processor, conversations)
        with attach(self.model, self.pruner.asked(questions[0])) as handle:
            replies = greedy_replies(self.model, self.processor.tokenizer, inputs, max_new_tokens)
            trace = handle.trace
        return [Answer(one.text, one.tokens, trace.flops_cut(number)) for number, one in enumerate(replies)]


def _check_parts(messages: Messages) -> None:
    unread = {part["type"] for message in messages for part in message["content"]} - _READS
    if unread:
        raise ConfigError(f"visipruner reads images and text here, not {', '.join(sorted(unread))}.")


def _question(messages: Messages) -> str:
    return " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")


def _parsed(settings: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if settings is None or isinstance(settings, Mapping):
        return dict(settings or {})
    try:
        parsed = json.loads(settings)
    except json.JSONDecodeError as error:
        raise ConfigError(f'settings={settings} is not JSON; write {{"keep_tokens": 64}}.') from error
    if not isinstance(parsed, dict):
        raise ConfigError(f'settings={settings} is no JSON object; write {{"keep_tokens": 64}}.')
    return parsed
