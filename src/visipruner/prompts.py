"""Chat prompts about a picture, and greedy answers to them; stock processors and `generate`."""

from __future__ import annotations

from typing import Any

from PIL import Image


def chat_inputs(model: Any, processor: Any, picture: Image.Image, question: str) -> dict[str, Any]:
    """The chat prompt as tensors in the model's dtype: the picture first, then the question."""
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return dict(inputs.to(model.device, model.dtype))


def greedy_answer(model: Any, tokenizer: Any, inputs: dict[str, Any], max_new_tokens: int) -> str:
    """What the model says to one prompt, special tokens left out."""
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
