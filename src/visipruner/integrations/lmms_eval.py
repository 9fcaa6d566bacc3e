"""`lmms-eval --model visipruner`, found through the entry point group `lmms_eval.models`.

lmms-eval --model visipruner --model_args 'pretrained=FOLDER,method=fastv,settings={"keep_ratio":0.3}' --tasks mme
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from visipruner.errors import ConfigError

if TYPE_CHECKING:
    from visipruner.integrations.answering import Answer

_MAX_NEW_TOKENS = 1024  # where a task does not say; the number that the harness' own models take


def manifest() -> ModelManifest:
    """What the entry point gives to the harness."""
    return ModelManifest(model_id="visipruner", chat_class_path=f"{__name__}.VisiPruned")


class VisiPruned(lmms):  # type: ignore[misc]
    """Any supported model with any method, answering greedily.

    Args, written `--model_args name=value,...`:
        pretrained, method, settings, config, dtype, allow_download: as `Answerer` has them.
        attn_implementation: "sdpa" or "eager". max_new_tokens: for tasks that do not say.
        batch_size, max_batch_size, device: the harness' own options; neighbours that are to be generated alike share a
            batch.

    Raises ConfigError for a batch size that is no number, and later for tasks that ask for sampling or beams.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        settings: str | None = None,
        config: str | None = None,
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        max_new_tokens: int = _MAX_NEW_TOKENS,
        allow_download: bool = False,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        from visipruner.integrations.answering import Answerer

        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(
                f"visipruner finds no batch size by itself; give a number, not --batch_size {batch_size}."
            )
        self._batch_size = int(batch_size)
        method = None if method is None else method.strip("'\"")  # quotes protect the commas of a method's settings
        self._answerer = Answerer(
            str(pretrained), method, settings, config, dtype, attn_implementation, device, allow_download
        )
        self._max_new_tokens = max_new_tokens

    @property
    def device(self) -> Any:
        """Where the model is; the harness gathers there what several processes did."""
        return self._answerer.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """One answer a request, cut off where one of the task's `until` texts begins."""
        from tqdm import tqdm

        results: list[GenerationResult] = []
        cuts: list[float] = []
        with tqdm(total=len(requests), desc="Answering", disable=self.rank != 0) as bar:
            for batch in _batches(requests, self._batch_size):
                for request, answer in zip(batch, self._answered(batch), strict=True):
                    context, _, generation, *_ = request.args
                    text = _until(answer.text, generation.get("until") or [])
                    cuts.append(answer.flops_cut)
                    results.append(GenerationResult(text, TokenCounts(output_tokens=answer.tokens)))
                    self.cache_hook.add_partial("generate_until", (context, generation), text)
                bar.update(len(batch))
        if cuts:
            name, mean = self._answerer.pruner.name, statistics.fmean(cuts)
            logger.info(f"visipruner: {name} cut {mean:.1%} of the decoder's FLOPs over {len(cuts)} prompts (counted)")
        return results

    def _answered(self, batch: Sequence[Instance]) -> list[Answer]:
        from lmms_eval.protocol import ChatMessages

        conversations = []
        for request in batch:
            _, to_messages, generation, number, task, split = request.args
            _check_greedy(generation, task)
            conversations.append(
                ChatMessages(messages=to_messages(self.task_dict[task][split][number])).to_hf_messages()
            )
        return self._answerer.answers(conversations, int(generation.get("max_new_tokens", self._max_new_tokens)))

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        raise NotImplementedError("visipruner is a chat model in lmms-eval, and those are not asked for likelihoods.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        raise NotImplementedError("visipruner answers tasks of one round in lmms-eval; leave out multi-round tasks.")


def _batches(requests: Sequence[Instance], size: int) -> Iterator[list[Instance]]:
    """Neighbours that are to be generated alike, so many at most."""
    for _, alike in groupby(requests, key=lambda request: request.args[2]):
        group = list(alike)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _check_greedy(generation: dict[str, Any], task: str) -> None:
    if generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
        raise ConfigError(f"{task} asks for sampling, and visipruner answers greedily: --gen_kwargs temperature=0.")
    if int(generation.get("num_beams") or 1) > 1:
        raise ConfigError(f"{task} asks for beams, and visipruner answers greedily: --gen_kwargs num_beams=1.")


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
