"""A model with a method on it that answers chat messages: all that an evaluation harness wants of us."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visipruner.chat import greedy_reply, message_inputs
from visipruner.cli.settings import make_pruner, pruner_for
from visipruner.engine.attach import attach
from visipruner.errors import ConfigError
from visipruner.models import loading as models
from visipruner.pruners.registry import make

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner

_READS = {"text", "image"}


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
        settings: of a single method, as a mapping or as JSON; then its layers are taken as they are.
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
        layers = self.model.config.get_text_config().num_hidden_layers
        self.pruner: Pruner
        if config is not None:
            self.pruner = make_pruner(None, [], Path(config))
        elif given:
            self.pruner = make(method or "visipruner", **given)
        else:
            self.pruner = pruner_for(method or "visipruner", pretrained, layers)
        self.pruner.check(layers)

    def answer(self, messages: Sequence[Mapping[str, Any]], max_new_tokens: int) -> Answer:
        """The greedy answer to a conversation in transformers' form, its images as PIL images.

        Raises ConfigError for parts that are neither text nor images.
        """
        unread = {part["type"] for message in messages for part in message["content"]} - _READS
        if unread:
            raise ConfigError(f"visipruner reads images and text here, not {', '.join(sorted(unread))}.")
        inputs = message_inputs(self.model, self.processor, messages)
        question = " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
        with attach(self.model, self.pruner.asked(question)) as handle:
            reply = greedy_reply(self.model, self.processor.tokenizer, inputs, max_new_tokens)
            return Answer(reply.text, reply.tokens, handle.trace.flops_cut(0))


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
