"""Chat prompts about a picture, methods at work on them, and greedy answers; stock processors and `generate`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visipruner.adapters import adapter_of
from visipruner.contract.picture import picture_methods
from visipruner.contract.pruner import Pruner
from visipruner.engine.attach import PruneHandle, attach
from visipruner.engine.clock import EngineClock, synchronize
from visipruner.engine.host import Host
from visipruner.engine.image_cache import ImageCache
from visipruner.engine.trace import PruneTrace
from visipruner.errors import ConfigError, VisiPrunerError, first_line
from visipruner.pruners.composed import Composed
from visipruner.pruners.none import NoPruning

TYPES = "mm_token_type_ids"


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


@dataclass
class _Watch:
    """A stopping criterion that never stops: it notes when the first token is there, and tells `each` the tokens."""

    each: Callable[[Any], object] | None = None
    at: float | None = None
    never: Any = field(default=None)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.at is None:
            synchronize(input_ids.device)
            self.at = time.perf_counter()
            self.never = input_ids.new_zeros(input_ids.shape[0], dtype=bool)
        if self.each is not None:
            self.each(input_ids)
        return self.never


class ChatPrompt(dict[str, Any]):
    """A prompt as `model(**prompt)` takes it, with what it was made from, so that it can be made again otherwise.

    Attributes:
        full: the prompt with the picture in full size where this one has it smaller, else None.
    """

    def __init__(
        self, model: Any, processor: Any, picture: Image.Image, question: str, full: ChatPrompt | None = None
    ) -> None:
        super().__init__(message_inputs(model, processor, picture_question(picture, question)))
        self.model, self.processor, self.picture, self.question, self.full = model, processor, picture, question, full

    def smaller(self, processor: Any, picture: Image.Image) -> ChatPrompt:
        """The same question about the same picture, which `processor` or `picture` show smaller."""
        return ChatPrompt(self.model, processor, picture, self.question, self.full or self)

    @property
    def length(self) -> int:
        """Rows."""
        return int(self["input_ids"].shape[1])

    @cached_property
    def num_visual(self) -> int:
        """Visual rows among them."""
        host = Host.of(self.model, adapter_of(self.model))
        assert host.embedder is not None
        assert host.adapter.locate is not None
        mask = host.adapter.locate(host.embedder, self)
        return 0 if mask is None else int(mask.sum())


def chat_inputs(model: Any, processor: Any, picture: Image.Image, question: str) -> ChatPrompt:
    """The chat prompt as tensors in the model's dtype: the picture first, then the question."""
    return ChatPrompt(model, processor, picture, question)


def message_inputs(model: Any, processor: Any, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A conversation in transformers' form as tensors in the model's dtype, up to where the model is to answer."""
    return templated(model, processor, list(messages))


def batch_inputs(model: Any, processor: Any, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Several conversations as one batch, padded on the left, where `generate` wants it.

    Raises ConfigError where the tokenizer has no padding token.
    """
    if processor.tokenizer.pad_token is None:
        raise ConfigError(
            "This model's tokenizer has no padding token, so prompts are answered one by one: batch_size=1."
        )
    return templated(model, processor, list(map(list, conversations)), padding=True, padding_side="left")


def picture_question(picture: Image.Image, question: str) -> list[dict[str, Any]]:
    """The conversation that asks `question` about `picture`, which comes first."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def templated(model: Any, processor: Any, conversation: list[Any], **options: Any) -> dict[str, Any]:
    """A conversation, or a list of them, as tensors in the model's dtype; `options` go to the processor's call.

    Raises ConfigError where the processor makes no prompt of it.
    """
    try:
        inputs = processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The {type(processor).__name__} makes no prompt of this chat ({first_line(error)}); make the model's "
            "inputs yourself, and attach the method in Python (vp.attach)."
        ) from error
    given = dict(inputs.to(model.device, model.dtype))
    if TYPES in getattr(processor, "model_input_names", ()) and TYPES not in given:  # as Cosmos 3 Edge's, by default
        types = processor.create_mm_token_type_ids(given["input_ids"].tolist())
        given[TYPES] = torch.tensor(types, device=model.device)
    return given


class Turn:
    """A method at work on one prompt, made by `attached`.

    Attributes:
        inputs: what the model is to be given.
    """

    def __init__(self, handle: PruneHandle, inputs: Mapping[str, Any]) -> None:
        self._handle, self.inputs = handle, inputs

    def image_cache(self, cache: ImageCache) -> AbstractContextManager[ImageCache]:
        """As the handle's: prompts that begin with the same image share the work on it."""
        return self._handle.image_cache(cache)

    @property
    def trace(self) -> PruneTrace:
        """What was done to the prompt, against the dense model's prompt with the picture in full size."""
        trace = self._handle.trace
        full = getattr(self.inputs, "full", None)
        if full is not None:
            trace[0].unseen_rows = full.length - trace[0].prompt_length
            trace[0].unseen_visual = full.num_visual - trace[0].num_visual
        return trace


def attachable(pruner: Pruner) -> Pruner:
    """`pruner` without the methods that change the picture: what is attached to the model while it reads the prompt."""
    if not picture_methods(pruner):
        return pruner
    if not isinstance(pruner, Composed):
        return NoPruning()
    return Composed(parts=tuple(attachable(part) for part in pruner.parts))


def answers_in_batches(pruner: Pruner, questions: Sequence[str]) -> bool:
    """Whether the method, attached once, serves a batch of prompts that ask these: it neither reads the question nor
    changes the picture."""
    return not picture_methods(pruner) and all(pruner.asked(question) == pruner for question in questions)


@contextmanager
def attached(model: Any, pruner: Pruner, prompt: Mapping[str, Any], clock: EngineClock | None = None) -> Iterator[Turn]:
    """`attach`, also for methods that read the question or show the picture smaller, for one prompt, which must then be
    a `ChatPrompt`. `clock` times the engine.

    Raises ConfigError where the prompt, or the model, cannot have the picture smaller; and what `attach` raises.
    """
    if isinstance(prompt, ChatPrompt):
        pruner = pruner.asked(prompt.question)
    changes = picture_methods(pruner)
    if not changes:
        with attach(model, pruner, clock=clock) as handle:
            yield Turn(handle, prompt)
        return
    if not isinstance(prompt, ChatPrompt):
        raise ConfigError(f"{pruner.name} needs the picture: make the prompt with visipruner.chat.chat_inputs.")
    shown = prompt
    for method in changes:
        shown = method.shown(shown)
    try:
        with attach(model, attachable(pruner), clock=clock) as handle:
            yield Turn(handle, shown)
    except (VisiPrunerError, torch.OutOfMemoryError):
        raise
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{pruner.name}: this {model.config.model_type} cannot be given the picture at another size ({error}); "
            "take pool where its vision tower knows one size only."
        ) from error


def greedy_reply(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    each: Callable[[str], object] | None = None,
) -> Reply:
    """What the model says to one prompt, special tokens left out, with its times; `each` is told the answer so far,
    whenever it has a token more."""

    def tell(ids: Any) -> None:
        assert each is not None
        each(str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip())

    return greedy_replies(model, tokenizer, inputs, max_new_tokens, None if each is None else tell)[0]


def greedy_replies(
    model: Any,
    tokenizer: Any,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    each: Callable[[Tensor], object] | None = None,
) -> list[Reply]:
    """What the model says to each prompt of a batch; each has an equal share of the batch's times. `each` is told all
    tokens so far, `[batch, seq]`."""
    clock, device = _Watch(each), inputs["input_ids"].device
    synchronize(device)  # what is still to be done of the prompt's tensors is no part of the answer
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        stopping_criteria=[clock],
    )
    synchronize(device)
    end = time.perf_counter()
    said = [_until_end(row, model.generation_config.eos_token_id) for row in output[:, inputs["input_ids"].shape[1] :]]
    seconds, first = (end - start) / len(said), ((clock.at or end) - start) / len(said)
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in said]
    return [Reply(text, len(row), seconds, first) for text, row in zip(texts, said, strict=True)]


def _until_end(row: Tensor, ends: int | list[int] | None) -> Tensor:
    """`row` without what fills it up after the first of the tokens that end an answer."""
    if ends is None:
        return row
    found = torch.isin(row, torch.tensor(ends, device=row.device)).nonzero()
    return row[: int(found[0]) + 1] if len(found) else row
