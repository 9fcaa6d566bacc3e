"""Proposed settings are run as a whole, and give way while the whole loses too much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.analysis.planted import pictures, planted
from visipruner.analysis import Probe, Stages, discard, find_stages
from visipruner.analysis.joint import Trial, settle
from visipruner.prompts import chat_inputs
from visipruner.pruners.visipruner import VisiPruner
from visipruner.samples import Sample

LAYERS = 6


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[Sample], Stages]:
    folder = tmp_path_factory.mktemp("joint")
    model, processor = planted(folder / "model", LAYERS, (2, 3))
    samples = pictures(folder, 2)
    return model, processor, samples, find_stages(model, processor, samples, max_new_tokens=3)


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


def test_settings_give_way_until_they_are_harmless(studied: tuple[Any, ...]) -> None:
    model, processor, samples, found = studied
    bold = replace(found, pruner=leaves_at(1), tolerance=0.01, notes=[])
    stricter = iter([leaves_at(1), leaves_at(2), leaves_at(5), leaves_at(6)])
    asked = []

    def stages_at(tolerance: float) -> Stages:
        asked.append(tolerance)
        return replace(found, pruner=next(stricter))

    yielded = list(settle(model, processor, samples, bold, stages_at, max_new_tokens=3))
    assert asked == pytest.approx([0.01 * 0.5 ** (step / 2) for step in (1, 2, 3)])
    settled = yielded[-1]
    assert settled.pruner == leaves_at(5)
    assert [attempt.pruner for attempt in settled.attempts] == [leaves_at(1), leaves_at(2), leaves_at(5)]
    assert settled.attempts[-1].loss.value <= 0.01 < settled.attempts[0].loss.value
    assert "chosen with a tolerance of 0.00354 each" in settled.notes[0]
    assert settled.to_dict()["attempts"][0]["settings"]["exit_layer"] == 1
    assert len(yielded) == 3


def test_what_never_gets_harmless_is_said(studied: tuple[Any, ...]) -> None:
    model, processor, samples, found = studied
    bold = replace(found, pruner=leaves_at(1), tolerance=1e-9, notes=[])
    settled = list(settle(model, processor, samples, bold, lambda strict: bold, max_new_tokens=3))[-1]
    assert settled.pruner == leaves_at(1)
    assert "still more than the tolerance" in settled.notes[0]


def test_nothing_is_run_where_nothing_is_proposed(studied: tuple[Any, ...]) -> None:
    model, processor, samples, found = studied
    nothing = replace(found, pruner=None)
    assert list(settle(model, processor, samples, nothing, lambda strict: nothing)) == [nothing]
