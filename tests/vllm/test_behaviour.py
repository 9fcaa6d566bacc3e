"""What becomes of prompts that cannot be pruned, of methods that fail, and of what is remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.vllm.answers import answer_of, asked, served
from tests.vllm.models import PROMPTS
from visipruner.contract.layer_view import LayerView
from visipruner.contract.pruner import About, PromptRun, Pruner
from visipruner.integrations.vllm import plugin
from visipruner.integrations.vllm.internals import hooks
from visipruner.pruners.registry import make_from_spec

if TYPE_CHECKING:
    from tests.vllm.engines import Engines

FASTV = "fastv:keep_tokens=16,layer=3"


def test_a_prompt_in_chunks_stays_dense_and_is_counted(engines: Engines) -> None:
    model = engines.of("llama", enable_chunked_prefill=True, max_num_batched_tokens=64)
    model.choose(make_from_spec(FASTV))
    found = served(model.llm)
    numbers = model.numbers()
    assert (numbers["prompts_pruned"], numbers["prompts_dense"]) == (0, 3)
    for answer, expected in zip(found, model.reference.answers(make_from_spec("none")), strict=True):
        assert answer.is_as(expected)


def test_a_prompt_whose_logprobs_are_asked_for_stays_dense_and_is_counted(engines: Engines) -> None:
    """Rows that left have none."""
    from vllm import SamplingParams

    model = engines.of("llama")
    model.choose(make_from_spec(FASTV))
    how = SamplingParams(temperature=0, max_tokens=8, min_tokens=8, logprobs=1, prompt_logprobs=0)
    (output,) = model.llm.generate([asked(*PROMPTS[0])], how, use_tqdm=False)
    numbers = model.numbers()
    assert (numbers["prompts_pruned"], numbers["prompts_dense"]) == (0, 1)
    (expected,) = model.reference.answers(make_from_spec("none"), PROMPTS[:1])
    assert answer_of(output.outputs[0]).is_as(expected)
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


@dataclass(frozen=True, kw_only=True)
class Failing(Pruner):
    """Keeps 8 tokens, but does `wrong` to prompts with two images."""

    name: ClassVar[str] = "failing"
    about: ClassVar[About] = About("for tests")

    wrong: Any = None

    def __post_init__(self) -> None:
        pass

    def start(self) -> PromptRun:
        return _FailingRun(self.wrong)


class _FailingRun(PromptRun):
    def __init__(self, wrong: Callable[[LayerView], Tensor]) -> None:
        super().__init__()
        self._wrong = wrong

    def observes(self, layer: int) -> bool:
        return layer == 2

    def select(self, layer: int, view: LayerView) -> Tensor | None:
        return self._wrong(view) if len(view.layout.tokens_per_image) == 2 else torch.arange(8)


def raises(view: LayerView) -> Tensor:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    "wrong",
    [
        raises,
        lambda view: torch.tensor([3, 2]),
        lambda view: torch.tensor([0, len(view.visual)]),
        lambda view: torch.ones(len(view.visual), dtype=torch.bool),
    ],
    ids=["raises", "not ascending", "out of range", "a mask"],
)
def test_a_failing_method_ends_its_request_and_no_other(
    engines: Engines, wrong: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = engines.of("llama")
    model.choose(Failing(wrong=wrong))
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=8, min_tokens=8, logprobs=1)
    outputs = model.llm.generate([asked(*each) for each in PROMPTS], how, use_tqdm=False)
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "length", "length", "error"]
    assert not outputs[3].outputs[0].token_ids
    numbers = model.numbers()
    assert (numbers["prompts_pruned"], numbers["prompts_failed"]) == (2, 1)
    expected = model.reference.answers(Failing(wrong=wrong), PROMPTS[:3])
    for output, right in zip(outputs[:3], expected, strict=True):
        assert answer_of(output.outputs[0]).is_as(right)
    model.choose(make_from_spec(FASTV))
    for answer, right in zip(served(model.llm), model.reference.answers(make_from_spec(FASTV)), strict=True):
        assert answer.is_as(right)


def test_nothing_is_remembered_of_requests_that_are_over(engines: Engines) -> None:
    """Whether they were answered or given up; vLLM tells its runner so with the next step."""
    from vllm import SamplingParams

    model = engines.of("llama")
    model.choose(make_from_spec(FASTV))
    engine = model.llm.llm_engine
    for name in ("given up", "answered"):
        engine.add_request(name, asked(*PROMPTS[0]), SamplingParams(max_tokens=4, min_tokens=4))
    engine.step()
    assert len(model.worker.requests) == 2
    engine.abort_request(["given up"])
    while engine.has_unfinished_requests():
        engine.step()
    served(model.llm, [PROMPTS[1]], new=2)
    assert len(model.worker.requests) == 1  # the text's own


def test_several_samples_of_one_prompt(engines: Engines) -> None:
    from vllm import SamplingParams

    model = engines.of("llama")
    model.choose(make_from_spec(FASTV))
    how = SamplingParams(n=3, temperature=1, seed=5, max_tokens=6, min_tokens=6)
    (output,) = model.llm.generate([asked(*PROMPTS[0])], how, use_tqdm=False)
    assert len({tuple(each.token_ids) for each in output.outputs}) > 1
    assert model.numbers()["prompts_pruned"] == 3


def test_without_the_key_nothing_is_touched() -> None:
    class Config:
        additional_config: ClassVar[dict[str, Any]] = {"another": 1}

    class Thing:
        pass

    for make in (plugin._make_runner, plugin._make_scheduler):
        thing, made = Thing(), []
        make(lambda config, made=made: made.append(config), thing, Config)  # type: ignore[arg-type]
        assert made == [Config]
        assert not vars(thing)


def test_a_report_goes_with_the_output_of_one_step() -> None:
    """vLLM has one object for steps without output; what was put there would be told again and again."""
    from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput

    class Runner:
        def sample_tokens(self, output: Any) -> Any:
            return output

    runner, reports = Runner(), ["first", None]
    hooks.report_with_output(runner, "report", lambda: reports.pop(0))
    assert not hasattr(runner.sample_tokens(EMPTY_MODEL_RUNNER_OUTPUT), "report")
    first, second = (runner.sample_tokens(ModelRunnerOutput(req_ids=[], req_id_to_index={})) for _ in range(2))
    assert first.report == "first"
    assert not hasattr(second, "report")
