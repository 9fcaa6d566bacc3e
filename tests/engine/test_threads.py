"""Several threads on one attached model: each has the answers and the trace of a run alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import nn

import visipruner as vp
from tests.engine.cases import METHODS
from tests.models import IMAGE_TOKEN, llava_inputs, llava_model
from visipruner.pruners.shortv import ShortV

PROMPTS = [llava_inputs([[4, 0, 6]], seed=1), llava_inputs([[9, 0, 3]], seed=2)]
ANSWER = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "suppress_tokens": [IMAGE_TOKEN]}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}


def _meet(*modules: nn.Module) -> None:
    """Two threads enter each of these modules together."""
    barrier = Barrier(2, timeout=20)

    def wait(_module: nn.Module, _args: Any) -> None:
        barrier.wait()

    for module in modules:
        module.register_forward_pre_hook(wait)


def _answered(model: Any, handle: vp.PruneHandle, prompt: dict[str, Any], **settings: Any) -> tuple[Any, Any]:
    logits = model.generate(**prompt, **ANSWER, **LOGITS, **settings).logits
    return torch.stack(logits), handle.trace.to_dict()


def _in_threads(model: Any, handle: vp.PruneHandle, prompts: list[dict[str, Any]], **settings: Any) -> list[Any]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: _answered(model, handle, prompt, **settings), prompts))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["fastv", "fastervlm", "prefix", "frozen"])
def test_threads_do_not_see_each_other(name: str, use_cache: bool) -> None:
    model = llava_model()
    with vp.attach(model, METHODS.get(name) or ShortV(layers=(1, 3))) as handle:
        alone = [_answered(model, handle, prompt, use_cache=use_cache) for prompt in PROMPTS]
        _meet(model.model.multi_modal_projector, *model.model.language_model.layers)
        together = _in_threads(model, handle, PROMPTS, use_cache=use_cache)
        assert handle.trace.to_dict() == alone[-1][1], "this thread's own last prompt"
    for (logits, trace), (expected, expected_trace) in zip(together, alone, strict=True):
        assert torch.equal(logits, expected)
        assert trace == expected_trace


@pytest.mark.parametrize("same_image", [True, False])
def test_threads_share_an_image_cache(same_image: bool) -> None:
    model = llava_model()
    other = llava_inputs([[4, 0, 9]], seed=1 if same_image else 3)
    if same_image:
        other["input_ids"][:, :20] = PROMPTS[0]["input_ids"][:, :20]
        other["pixel_values"] = PROMPTS[0]["pixel_values"]
    prompts = [PROMPTS[0], other]
    with vp.attach(model, METHODS["fastv"]) as handle:
        alone = [_answered(model, handle, prompt) for prompt in prompts]
        _meet(*model.model.language_model.layers)
        with handle.image_cache() as cache:
            for _ in range(2):
                for (logits, trace), expected in zip(_in_threads(model, handle, prompts), alone, strict=True):
                    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
                    assert trace["examples"][0]["kept"] == expected[1]["examples"][0]["kept"]
        assert cache.reused + cache.read == 4
        assert cache.reused >= (2 if same_image else 0)


def test_a_thread_that_ran_nothing_is_told_of_the_last_prompt() -> None:
    model = llava_model()
    with vp.attach(model, METHODS["fastv"]) as handle:
        (_, trace), *_ = _in_threads(model, handle, PROMPTS[:1])
        assert handle.trace.to_dict() == trace


def test_a_thread_is_told_of_its_own_prompt_after_another_s() -> None:
    model = llava_model()
    with vp.attach(model, METHODS["fastv"]) as handle:
        _, mine = _answered(model, handle, PROMPTS[1])
        (_, other), *_ = _in_threads(model, handle, PROMPTS[:1])
        assert handle.trace.to_dict() == mine != other


def test_a_living_thread_keeps_its_trace_and_no_tensor_after_remove() -> None:
    """Images are remembered for the prompt that they belong to."""
    model, prompt = llava_model(), PROMPTS[0]
    with ThreadPoolExecutor(1) as pool, vp.attach(model, METHODS["fastervlm"]) as handle:

        def remembered() -> Any:
            assert handle._tap is not None
            return handle._tap._seen

        _, trace = pool.submit(_answered, model, handle, prompt, use_cache=False).result()
        pool.submit(model.model.get_image_features, prompt["pixel_values"]).result()
        _answered(model, handle, PROMPTS[1])
        assert pool.submit(remembered).result()
        handle.remove()
        assert not pool.submit(remembered).result()
        assert pool.submit(lambda: handle.trace.to_dict()).result() == trace
