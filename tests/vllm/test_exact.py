"""What vLLM answers is what transformers with this library answers, for every method that can be served."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from tests.vllm.answers import Answer, served
from tests.vllm.models import PROMPTS, VISUAL
from tests.vllm.qwen import IMAGE
from visipruner.errors import ConfigError
from visipruner.integrations.vllm.settings import refuse
from visipruner.pruners.registry import available, make, make_from_spec, method_class

if TYPE_CHECKING:
    from tests.vllm.engines import Engines

METHODS = [
    "schedule:layers=[2,4],keep=[30,0]",
    "fastv:keep_tokens=16,layer=3",
    # Detects its layers, unlike ones for the prompts of a batch.
    'visipruner:stages=["middle","deep"],shallow_end=1,filter_threshold=0.995,relative=true,token_threshold=0.05,'
    "exit_threshold=0.98,exit_votes=2",
    'visipruner:stages=["middle","deep"],filter_layer=3,exit_layer=6,keep_tokens=10',
    "dart:keep_tokens=20",
    "divprune:keep_tokens=20,positions=keep",
    "pyramiddrop:layers=[2,4,6],positions=keep",
    "sparsevlm:layers=[1,3],keep=[30,12],tokens=64,positions=keep",
    "feather:layers=[2,5]",
    "random:keep_tokens=20",
    "uniform:keep_tokens=20",
    "pool",
    "vtw:layer=4",
    "capa:layer=2",
    "priortr:layer=2,keep_tokens=20",
    "second-look:layers=[3,5],keep_ratios=[0.25,0.1],cover_layer=1,cover_ratio=0.5,exit_layer=7",
    "cdpruner:relevance=words,keep_tokens=20,positions=keep",
    "vidcom2:positions=keep",
    "fitprune:remove=[0,0.1,0.1,0.2,0.1,0.1,0.1,0]",
    "divprune:keep_tokens=32,positions=keep+fastv:keep_tokens=10,layer=3",
]

# They drop what two pictures of one size, taken for frames, have in common.
FRAMES = ["evs", "dycoke:positions=keep"]


def test_every_method_is_compared_or_refused() -> None:
    compared = {part.partition(":")[0] for spec in METHODS + FRAMES for part in spec.split("+")}
    assert compared <= set(available())
    for name in set(available()) - compared - {"none", "composed"}:
        takes_positions = "positions" in {field.name for field in dataclasses.fields(method_class(name))}
        pruner = make(name, **({"positions": "keep"} if takes_positions else {}))
        with pytest.raises(ConfigError, match="vLLM"):
            refuse(pruner, 32)


# Width and height of each picture, by its seed.
SHAPES = {1: (168, 112), 2: (224, 224), 3: (112, 196), 4: (140, 84)}


def differ(found: list[Answer], expected: list[Answer]) -> list[int]:
    return [place for place, each in enumerate(found) if not each.is_as(expected[place])]


@pytest.mark.parametrize("decoder", ["llama", "qwen2", "mistral"])
def test_answers_are_those_of_transformers(engines: Engines, decoder: str) -> None:
    """Four prompts at once: of text alone, with one image, with two. One engine serves all methods in turn."""
    model = engines.of(decoder)
    dense = model.reference.answers(make_from_spec("none"))
    model.choose(make_from_spec("none"))
    assert not differ(served(model.llm), dense)
    for spec in METHODS + FRAMES:
        pruner = make_from_spec(spec)
        expected = model.reference.answers(pruner)
        assert differ(expected, dense), f"{spec} changes no answer, so this would prove nothing"
        model.choose(pruner)
        assert not differ(served(model.llm), expected), spec
        numbers = model.numbers()
        assert (numbers["prompts_pruned"], numbers["prompts_dense"]) == (3, 0)
        assert numbers["visual_tokens"] == 4 * VISUAL
        assert numbers["visual_tokens_dropped"] >= (0.5 if spec in FRAMES else 2) * VISUAL, spec


def test_preempted_prompts_are_read_and_pruned_again(engines: Engines) -> None:
    """15 blocks are less than the prompts and what they generate take up."""
    model = engines.of("llama", num_gpu_blocks_override=15, max_model_len=320)
    pruner = make_from_spec(METHODS[3])
    model.choose(pruner)
    found = served(model.llm, new=70)
    assert model.numbers()["prompts_pruned"] > 3, "nothing was preempted"
    assert not differ(found, model.reference.answers(pruner, new=70))


def test_requests_join_and_leave(engines: Engines) -> None:
    """Each prompt comes two steps after the one before, while those are being answered."""
    from vllm import SamplingParams

    from tests.vllm.answers import answer_of, asked

    model = engines.of("llama")
    pruner = make_from_spec(METHODS[1])
    model.choose(pruner)
    engine, found = model.llm.llm_engine, {}
    waiting = [(str(place), prompt) for place, prompt in enumerate(PROMPTS)]
    lengths = [12, 3, 8, 5]
    while waiting or engine.has_unfinished_requests():
        if waiting:
            name, prompt = waiting.pop(0)
            new = lengths[int(name)]
            how = SamplingParams(temperature=0, max_tokens=new, min_tokens=new, logprobs=1)
            engine.add_request(name, asked(*prompt), how)
        for output in engine.step() + engine.step():
            if output.finished:
                found[output.request_id] = answer_of(output.outputs[0])
    for place, new in enumerate(lengths):
        (expected,) = model.reference.answers(pruner, [PROMPTS[place]], new)
        assert found[str(place)].is_as(expected), place


def test_decodes_run_compiled(engines: Engines) -> None:
    """As vLLM does by itself: prompts that are pruned run outside of what was compiled, with the same answers."""
    model = engines.of("llama", enforce_eager=False)
    assert model.llm.llm_engine.vllm_config.compilation_config.mode != 0
    for spec in METHODS[1:4]:
        pruner = make_from_spec(spec)
        model.choose(pruner)
        assert not differ(served(model.llm), model.reference.answers(pruner)), spec


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_models_that_place_rows_by_line_and_column(engines: Engines, model_type: str) -> None:
    """M-RoPE: also methods whose published form closes gaps keep places here, as elsewhere. Pictures of two shapes."""
    model = engines.of(model_type)
    prompts = [(text.replace("<image>", IMAGE), seeds) for text, seeds in PROMPTS]
    dense = model.reference.answers(make_from_spec("none"), prompts, shapes=SHAPES)
    for spec in ["none", *METHODS[:5], "divprune:keep_tokens=20", "pool", "feather:layers=[2,5]"]:
        pruner = make_from_spec(spec)
        expected = model.reference.answers(pruner, prompts, shapes=SHAPES)
        assert spec == "none" or differ(expected, dense), spec
        model.choose(pruner)
        assert not differ(served(model.llm, prompts, shapes=SHAPES), expected), spec
        assert model.numbers()["prompts_pruned"] == 3
