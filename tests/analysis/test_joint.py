"""Proposed settings are run as a whole, and give way while the whole loses too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.analysis.planted import pictures, planted
from tests.models import llava_inputs, llava_model
from visipruner.analysis import Probe, Stages, discard
from visipruner.analysis.boundaries import Evidence
from visipruner.analysis.joint import TRIES, Trial, settle
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, Task, measure
from visipruner.analysis.probe import greedy_logprobs
from visipruner.analysis.study import Study
from visipruner.chat import chat_inputs
from visipruner.evaluation.samples import Sample
from visipruner.pruners.visipruner import VisiPruner

LAYERS = 6


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[Sample], Evidence]:
    folder = tmp_path_factory.mktemp("joint")
    model, processor = planted(folder / "model", LAYERS, (2, 3))
    samples = pictures(folder, 2)
    records = list(measure(model, processor, samples, Task("", "float32", "sdpa", NEEDED_FOR_STAGES, 3)))
    return model, processor, samples, Study(records).evidence()


def leaves_at(layer: int) -> VisiPruner:
    """All visual tokens stay until `layer`."""
    return VisiPruner(stages=("middle", "deep"), filter_layer=0, keep_tokens=10_000, exit_layer=layer)


@pytest.mark.parametrize("metric", ["kl", "agreement"])
def test_losses_are_those_of_the_discard_experiment(studied: tuple[Any, ...], metric: Any) -> None:
    model, processor, samples, _ = studied
    expected = []
    with Probe(model) as probe:
        for sample in samples:
            inputs = chat_inputs(model, processor, Image.open(sample.image).convert("RGB"), sample.question)
            found = discard(probe, probe.read(inputs, processor.tokenizer, max_new_tokens=3))
            values = found["kl"].values if metric == "kl" else 1 - found["agrees"].values
            expected.append(values[3])
    losses = Trial(model, processor, samples, metric, 3).losses(leaves_at(3))
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    assert losses.max() > 0.01


def test_a_checkpoints_repetition_penalty_is_no_loss() -> None:
    """It would make the model say what it does not hold most likely, and every run, altered or not, another answer."""
    model = llava_model()
    model.generation_config.repetition_penalty = 1.3
    inputs = llava_inputs([[5, 0, 6]], seed=1)
    with Probe(model) as probe:
        reading = probe.read(inputs, max_new_tokens=12)
        assert discard(probe, reading)["agrees"].values[-1] == 1
    said, logprobs = greedy_logprobs(model, inputs, 12)
    assert torch.equal(said, logprobs.argmax(-1))
    penalized = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, -len(said) :]
    assert not torch.equal(penalized, said)


def test_accuracy_lost_is_right_answers_lost(studied: tuple[Any, ...]) -> None:
    model, processor, samples, _ = studied
    trial = Trial(model, processor, samples, "accuracy", 3)
    assert (trial.losses(leaves_at(5)) == 0).all()  # without known answers nothing can be lost
    texts = [processor.tokenizer.decode(dense.tokens, skip_special_tokens=True) for dense in trial._dense]
    known = [replace(sample, answers=(text,)) for sample, text in zip(samples, texts, strict=True)]
    changed = Trial(model, processor, samples, "agreement", 3).losses(leaves_at(1))
    lost = Trial(model, processor, known, "accuracy", 3).losses(leaves_at(1))
    assert lost.sum() > 0
    assert (lost <= changed).all()


def claimed(evidence: Evidence, *exits: float) -> Evidence:
    """No stage is shallow, the filter (which keeps all) can be at layer 0, and leaving at layer 2, 3, ... loses
    `exits`, whatever was measured."""
    samples = len(evidence.images)
    below, discard = np.ones((samples, LAYERS + 1)), np.ones((samples, LAYERS + 1))
    below[:, 0], discard[:, 2:] = 0, exits
    kept = np.ones_like(evidence.kept)
    kept[:, -1] = 0
    budgets = [*evidence.budgets[:-1], 10_000]
    return replace(evidence, below=below, discard=discard, kept=kept, budgets=budgets)


def exits(stages: Stages) -> list[int | None]:
    return [attempt.pruner.exit_layer for attempt in stages.attempts]


def test_settings_give_way_until_they_are_harmless(studied: tuple[Any, ...]) -> None:
    model, processor, samples, evidence = studied
    losses = Trial(model, processor, samples, "kl", 3)
    measured = [float(losses.losses(leaves_at(layer)).mean()) for layer in (2, 3, 4)]
    assert measured[0] > measured[1] > 2 * measured[2]  # what the claims below are about
    tolerance = (measured[1] + measured[2]) / 2
    bold = claimed(evidence, tolerance, 0.6 * tolerance, 0.3 * tolerance, 0, 0)
    yielded = list(settle(losses, bold, tolerance))
    settled = yielded[-1]
    assert len(yielded) == len(settled.attempts) > 1
    assert exits(settled)[0] == 2
    harmless = [attempt.pruner for attempt in settled.attempts if attempt.loss.value <= tolerance]
    assert settled.attempts[0].loss.value > tolerance
    assert settled.pruner == min(harmless, key=lambda pruner: pruner.exit_layer or LAYERS)
    assert f"({len(yielded)} combinations tried)" in settled.notes[-1]
    first = settled.to_dict()["attempts"][0]
    assert first["settings"]["exit_layer"] == 2
    assert first["parts_loss"] == pytest.approx(tolerance)


def test_the_cheapest_that_should_be_harmless_comes_next(studied: tuple[Any, ...], monkeypatch: Any) -> None:
    """Losses that add up as they did so far decide; here everything loses one and a half times what it should."""
    model, processor, samples, evidence = studied
    bold = claimed(evidence, 0.010, 0.008, 0.006, 0.003, 0)
    alone = {2: 0.010, 3: 0.008, 4: 0.006, 5: 0.003, None: 0.0}
    monkeypatch.setattr(Trial, "losses", lambda _, pruner: np.full(len(samples), 1.5 * alone[pruner.exit_layer]))
    assert exits(list(settle(Trial(model, processor, samples, "kl"), bold, 0.01))[-1]) == [2, 4]


@pytest.mark.parametrize(
    ("growth", "tried", "chosen"),
    [
        ({2: 3.0}, [2, 5, 3], 3),
        ({2: 3.0, 3: 3.0}, [2, 5, 3, 4], 4),
        ({2: 3.0, 3: 3.0, 4: 3.0}, [2, 5, 3, 4], 5),
    ],
)
def test_a_harmless_attempt_that_was_too_cautious_is_improved_on(
    studied: tuple[Any, ...], monkeypatch: Any, growth: dict[int, float], tried: list[int], chosen: int
) -> None:
    """The boldest part alone makes losses grow, so that the first harmless attempt is not the cheapest."""
    model, processor, samples, evidence = studied
    bold = claimed(evidence, 0.010, 0.007, 0.0049, 0.003, 0)
    alone = {2: 0.010, 3: 0.007, 4: 0.0049, 5: 0.003, None: 0.0}

    def losses(_: Trial, pruner: Any) -> np.ndarray:
        return np.full(len(samples), growth.get(pruner.exit_layer, 1.0) * alone[pruner.exit_layer])

    monkeypatch.setattr(Trial, "losses", losses)
    settled = list(settle(Trial(model, processor, samples, "kl"), bold, 0.01))[-1]
    assert exits(settled) == tried
    assert settled.pruner is not None
    assert settled.pruner.exit_layer == chosen


def test_what_never_gets_harmless_is_said(studied: tuple[Any, ...], monkeypatch: Any) -> None:
    model, processor, samples, evidence = studied
    bold = claimed(evidence, 0.010, 0.008, 0.006, 0.003, 0)
    monkeypatch.setattr(Trial, "losses", lambda _, pruner: np.full(len(samples), 2.0 - (pruner.exit_layer == 4)))
    settled = list(settle(Trial(model, processor, samples, "kl"), bold, 0.01))[-1]
    assert len(settled.attempts) <= TRIES
    assert settled.pruner is not None
    assert settled.pruner.exit_layer == 4  # the least harmful of those that were tried
    assert "still more than the tolerance" in settled.notes[-1]


def test_nothing_is_run_where_nothing_is_proposed(studied: tuple[Any, ...]) -> None:
    model, processor, samples, evidence = studied
    useless = claimed(evidence, 1, 1, 1, 1, 1)
    trial = Trial(model, processor, samples, "kl")
    settled = list(settle(trial, replace(useless, kept=np.ones_like(evidence.kept))))
    assert [(stages.pruner, stages.attempts) for stages in settled] == [(None, [])]
