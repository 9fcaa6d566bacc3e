"""A model that gives a picture as many tokens as it is large: budgets are shares, whichever picture comes first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.families.checkpoints import processor_of
from tests.families.zoo import LAYERS, built
from visipruner import attach
from visipruner.analysis.boundaries import filter_choice
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, Task, measure
from visipruner.analysis.stages import settings_from
from visipruner.analysis.study import Study
from visipruner.chat import chat_inputs
from visipruner.evaluation.samples import Sample

SHARES = [1 / 32, 1 / 16, 1 / 8, 1 / 4]


@pytest.fixture(scope="module")
def qwen() -> tuple[Any, Any]:
    return built("qwen2-vl", "sdpa"), processor_of("qwen2-vl")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("pictures")
    made = []
    for number, size in enumerate([(40, 24), (40, 24), (64, 48), (64, 48)]):
        Image.effect_noise(size, 60 + 10 * number).convert("RGB").save(folder / f"{number}.png")
        made.append(Sample(folder / f"{number}.png", f"w{5 + number} w6", (), "kind"))
    return made


@pytest.fixture(scope="module")
def records(qwen: tuple[Any, Any], samples: list[Sample]) -> list[dict[str, Any]]:
    return list(measure(*qwen, samples, Task("tiny", "float32", "sdpa", NEEDED_FOR_STAGES, max_new_tokens=2)))


def test_the_order_of_samples_does_not_matter(records: list[dict[str, Any]]) -> None:
    assert len({record["visual_tokens"] for record in records}) == 2
    one, other = Study(records), Study(records[::-1])
    assert one.plan == other.plan
    assert one.plan["budgets"] == SHARES
    assert one.visual_tokens == other.visual_tokens == min(record["visual_tokens"] for record in records)
    summaries = [study.summary() for study in (one, other)]
    assert [found["budgets"]["budget"] for found in summaries] == [SHARES] * 2
    assert [found["scores"]["budget"] for found in summaries] == [[1 / 32, 1 / 8]] * 2
    np.testing.assert_allclose(*(np.array(found["budgets"]["kl"]["mean"]) for found in summaries), atol=2e-5)


def test_the_proposal_is_the_share_that_was_measured(
    qwen: tuple[Any, Any], samples: list[Sample], records: list[dict[str, Any]]
) -> None:
    choices = []
    for found in (records, records[::-1]):
        evidence = Study(found).evidence()
        assert evidence.budgets == SHARES
        evidence.kept[:, :3], evidence.kept[:, 3] = 1.0, 0.0  # a quarter is enough, less is not
        choices.append(filter_choice(evidence, 0, LAYERS, tolerance=0.5, seed=0))
    assert choices[0] is not None
    assert choices[0] == choices[1]
    pruner = settings_from(0, choices[0], LAYERS, LAYERS)
    assert (pruner.keep_tokens, pruner.keep_ratio) == (None, 0.25)
    model, processor = qwen
    for sample, record in zip(samples, records, strict=True):
        inputs = chat_inputs(model, processor, Image.open(sample.image).convert("RGB"), sample.question)
        with attach(model, pruner) as handle, torch.inference_mode():
            model(**inputs)
        assert len(handle.trace[0].kept[-1]) == record["plan"]["budgets"][3]


def test_pictures_of_one_size_keep_numbers_of_tokens(records: list[dict[str, Any]]) -> None:
    study = Study(records[2:])
    assert study.plan == records[2]["plan"]
    assert study.evidence().budgets == list(records[2]["plan"]["budgets"])
    assert study.visual_tokens == records[2]["visual_tokens"]
