"""Chat prompts about a picture, and greedy answers to them; stock processors and `generate`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


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
class _FirstToken:
    """A stopping criterion that never stops: it notes when the first token is there."""

    at: float | None = None
    never: Any = field(default=None)

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.at is None:
            self.at = time.perf_counter()
            self.never = input_ids.new_zeros(input_ids.shape[0], dtype=bool)
        return self.never


def chat_inputs(model: Any, processor: Any, picture: Image.Image, question: str) -> dict[str, Any]:
    """The chat prompt as tensors in the model's dtype: the picture first, then the question."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return message_inputs(model, processor, [{"role": "user", "content": content}])


def message_inputs(model: Any, processor: Any, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A conversation in transformers' form as tensors in the model's dtype, up to where the model is to answer."""
    inputs = processor.apply_chat_template(
        list(messages),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(inputs.to(model.device, model.dtype))


def greedy_reply(model: Any, tokenizer: Any, inputs: dict[str, Any], max_new_tokens: int) -> Reply:
    """What the model says to one prompt, special tokens left out, with its times."""
    clock = _FirstToken()
    start = time.perf_counter()
    output = model.generate(
        **inputs,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        stopping_criteria=[clock],
    )
    end = time.perf_counter()
    new = output[0, inputs["input_ids"].shape[1] :]
    text = str(tokenizer.decode(new, skip_special_tokens=True)).strip()
    return Reply(text, len(new), end - start, (clock.at or end) - start)
