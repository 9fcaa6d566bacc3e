"""Cache groups of deep layers give back the blocks that they no longer need, and the answers stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vllm.answers import asked, served
from tests.vllm.models import LAYERS, PROMPTS, VISUAL
from visipruner.pruners.registry import make_from_spec

if TYPE_CHECKING:
    from tests.vllm.engines import Engines, Served

FIXED = 'visipruner:stages=["middle","deep"],filter_layer=1,exit_layer=4,keep_tokens=6'
SPECS = [FIXED, "fastv:keep_tokens=16,layer=3", 'visipruner:stages=["middle","deep"],shallow_end=1,relative=true']
BLOCK = 32


def grouped(engines: Engines, **options: int) -> Served:
    return engines.of("llama", cache_groups=(2, 4, 6), num_gpu_blocks_override=80, **options)


def held(model: Served) -> int:
    """Blocks that are not free, times the layers that share one."""
    pool = model.scheduler.kv_cache_manager.block_pool
    widest = max(len(group.layer_names) for group in model.scheduler.kv_cache_config.kv_cache_groups)
    return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) * widest


@pytest.mark.parametrize("spec", SPECS)
def test_answers_stay_the_same(engines: Engines, spec: str) -> None:
    model = grouped(engines)
    model.choose(make_from_spec(spec))
    expected = model.reference.answers(make_from_spec(spec), new=70)
    for answer, right in zip(served(model.llm, new=70), expected, strict=True):
        assert answer.is_as(right)
    assert held(model) == 0


def test_preempted_requests_stay_the_same(engines: Engines) -> None:
    model = engines.of("llama", cache_groups=(2, 4, 6), num_gpu_blocks_override=41, max_model_len=320)
    model.choose(make_from_spec(FIXED))
    found = served(model.llm, PROMPTS * 2, new=70)
    assert model.numbers()["prompts_pruned"] > 6, "nothing was preempted"
    expected = model.reference.answers(make_from_spec(FIXED), new=70)
    for answer, right in zip(found, expected * 2, strict=True):
        assert answer.is_as(right)
    assert held(model) == 0


@pytest.mark.parametrize("spec", ["none", FIXED])
def test_blocks_held_are_those_of_the_rows_held(engines: Engines, spec: str) -> None:
    """While two pictures are talked about: after the filter 6 of 128 tokens, after the exit none."""
    from vllm import SamplingParams

    model = grouped(engines)
    model.choose(make_from_spec(spec))
    engine = model.llm.llm_engine
    engine.add_request("one", asked(*PROMPTS[3]), SamplingParams(max_tokens=40, min_tokens=40))
    for _ in range(4):
        engine.step()
    (request,) = model.worker.requests.values()
    rows = request.prompt_length + 4
    visual = [2 * VISUAL] * LAYERS if spec == "none" else [2 * VISUAL] * 2 + [6] * 2 + [0] * 4
    blocks = [-(-(rows - 2 * VISUAL + each) // BLOCK) for each in visual]
    assert held(model) == sum(blocks)
    while engine.has_unfinished_requests():
        engine.step()
    assert held(model) == 0
