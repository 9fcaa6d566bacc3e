"""What transformers with this library, and what vLLM with the plug-in, answer to the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import visipruner
from tests.vllm.models import PROMPTS, picture

if TYPE_CHECKING:
    from vllm import LLM

    from visipruner.contract.pruner import Pruner

NEW = 8
Prompt = tuple[str, list[int]]
Shapes = dict[int, tuple[int, int]]


@dataclass(frozen=True)
class Answer:
    """Greedy tokens and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]

    def is_as(self, other: Answer, tolerance: float = 1e-3) -> bool:
        near = all(abs(a - b) < tolerance for a, b in zip(self.logprobs, other.logprobs, strict=True))
        return self.tokens == other.tokens and near


class Reference:
    """A model in transformers."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self._processor = AutoProcessor.from_pretrained(folder)

    def answers(
        self, pruner: Pruner, prompts: list[Prompt] = PROMPTS, new: int = NEW, shapes: Shapes | None = None
    ) -> list[Answer]:
        with visipruner.attach(self._model, pruner):
            return [self._answer(text, pictures(seeds, shapes), new) for text, seeds in prompts]

    def _answer(self, text: str, pictures: list[Any], new: int) -> Answer:
        inputs = self._processor(text=text, images=pictures or None, return_tensors="pt")
        found = self._model.generate(
            **inputs,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = found.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        chances = [step[0].float().log_softmax(-1) for step in found.logits]
        return Answer(tokens, [float(each[token]) for each, token in zip(chances, tokens, strict=True)])


def served(llm: LLM, prompts: list[Prompt] = PROMPTS, new: int = NEW, shapes: Shapes | None = None) -> list[Answer]:
    """All prompts at once."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, logprobs=1)
    return [
        answer_of(each.outputs[0])
        for each in llm.generate([asked(*each, shapes) for each in prompts], how, use_tqdm=False)
    ]


def asked(text: str, seeds: list[int], shapes: Shapes | None = None) -> Any:
    """A prompt as vLLM takes it."""
    return {"prompt": text, **({"multi_modal_data": {"image": pictures(seeds, shapes)}} if seeds else {})}


def pictures(seeds: list[int], shapes: Shapes | None) -> list[Any]:
    """In the models' own shape unless `shapes` has another."""
    return [picture(seed, *(shapes or {}).get(seed, ())) for seed in seeds]


def answer_of(output: Any) -> Answer:
    """What vLLM generated."""
    tokens = list(output.token_ids)
    return Answer(tokens, [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)])
