"""`lmms-eval --model visipruner`, found through the entry point group `lmms_eval.models`.

lmms-eval --model visipruner --model_args 'pretrained=FOLDER,method=fastv,settings={"keep_ratio":0.3}' --tasks mme
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger

from visipruner.errors import ConfigError

_MAX_NEW_TOKENS = 1024  # where a task does not say; the number that the harness' own models take


def manifest() -> ModelManifest:
    """What the entry point gives to the harness."""
    return ModelManifest(model_id="visipruner", chat_class_path=f"{__name__}.VisiPruned")


class VisiPruned(lmms):  # type: ignore[misc]
    """Any supported model with any method, answering one prompt at a time, greedily.

    Args, written `--model_args name=value,...`:
        pretrained, method, settings, config, dtype, allow_download: as `Answerer` has them.
        attn_implementation: "sdpa" or "eager". max_new_tokens: for tasks that do not say.
        batch_size, max_batch_size, device: the harness' own options; a batch is 1.

    Raises ConfigError for a batch size other than 1, and later for tasks that ask for sampling or beams.
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
        if str(batch_size) != "1":
            raise ConfigError("visipruner answers one prompt at a time here; leave --batch_size at 1.")
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
        from lmms_eval.protocol import ChatMessages
        from tqdm import tqdm

        results: list[GenerationResult] = []
        cuts: list[float] = []
        for request in tqdm(requests, desc="Answering", disable=self.rank != 0):
            context, to_messages, generation, number, task, split = request.args
            _check_greedy(generation, task)
            messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number])).to_hf_messages()
            answer = self._answerer.answer(messages, int(generation.get("max_new_tokens", self._max_new_tokens)))
            text = _until(answer.text, generation.get("until") or [])
            cuts.append(answer.flops_cut)
            results.append(GenerationResult(text, TokenCounts(output_tokens=answer.tokens)))
            self.cache_hook.add_partial("generate_until", (context, generation), text)
        if cuts:
            name, mean = self._answerer.pruner.name, statistics.fmean(cuts)
            logger.info(f"visipruner: {name} cut {mean:.1%} of the decoder's FLOPs over {len(cuts)} prompts (counted)")
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        raise NotImplementedError("visipruner is a chat model in lmms-eval, and those are not asked for likelihoods.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        raise NotImplementedError("visipruner answers tasks of one round in lmms-eval; leave out multi-round tasks.")


def _check_greedy(generation: dict[str, Any], task: str) -> None:
    if generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
        raise ConfigError(f"{task} asks for sampling, and visipruner answers greedily: --gen_kwargs temperature=0.")
    if int(generation.get("num_beams") or 1) > 1:
        raise ConfigError(f"{task} asks for beams, and visipruner answers greedily: --gen_kwargs num_beams=1.")


def _until(text: str, stops: str | Sequence[str]) -> str:
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
