"""A schedule for `second-look`: looks before the places of fusion, shares that stay harmless as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visipruner as vp
from tests.analysis.planted import pictures, planted
from tests.analysis.test_stages import staged_evidence
from visipruner.analysis.boundaries import Evidence, Fusion
from visipruner.analysis.joint import TRIES, Trial
from visipruner.analysis.looks import SHARES, Looks, Scored, looks_from, proposals, settle_looks
from visipruner.analysis.result import Interval
from visipruner.analysis.run import choose
from visipruner.analysis.stages import Stages, stages_from
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample
from visipruner.pruners.registry import load_pruner
from visipruner.pruners.second_look import SecondLook

SHIPPED = json.loads((Path(__file__).parents[2] / "docs/analysis/analysis.json").read_text())


def fused_at(stages: Stages, *places: int) -> Stages:
    found = [Fusion(place, place, Interval(1.0, 1.0, 1.0)) for place in places]
    return replace(stages, overall=replace(stages.overall, fusion=found))


def scored(**loss: list[list[float]]) -> Scored:
    """Shares of an eighth and a 32nd, layers 0, 2, 4; a score that is not named loses a lot."""
    names = ("text_mean", "last_row", "random")
    return Scored({name: np.array(loss.get(name, np.ones((2, 3)))) for name in names}, (1 / 32, 1 / 8), (0, 2, 4))


WHOLE = 320
# What the question chooses in layer 2 is no better than chance, in layer 4 it is.
HALF_SURE = scored(text_mean=[[9, 0.5, 0.02], [9, 0.3, 0.005]], random=[[9, 0.4, 0.9], [9, 0.2, 0.8]])


@pytest.fixture
def evidence() -> Evidence:
    """Eight layers, 320 tokens, vision leaves before layer 6; nothing is shallow."""
    below = np.ones((12, 9))
    below[:, 0] = 0
    return staged_evidence(below=below, relative_norm=np.ones((12, 8, WHOLE)))


@pytest.fixture
def stages(evidence: Evidence) -> Stages:
    found = fused_at(stages_from(evidence), 3, 5)
    assert found.pruner is not None
    assert (found.pruner.stages, found.pruner.exit_layer) == (("middle", "deep"), 6)
    return found


def test_the_small_models_schedule() -> None:
    """By the curves in docs: a grid after layer 6, the question's choice after 12 and 18."""
    told, found = SHIPPED["scores"], stages_from(staged_evidence())
    losses = dict(zip(told["score"], np.array(told["kl"]["mean"]), strict=True))
    measured = Scored(losses, [budget / 576 for budget in told["budget"]], told["layer"])
    pruner = vp.VisiPruner(**{**SHIPPED["stages"]["pruner"], "stages": tuple(SHIPPED["stages"]["pruner"]["stages"])})
    places = [place["first_layer"] for place in SHIPPED["stages"]["overall"]["fusion"]]
    looks = looks_from(measured, fused_at(replace(found, num_layers=30, pruner=pruner), *places))
    assert (looks.covered, looks.layers, looks.rows) == (6, [12, 18], "question")


def test_where_to_look(stages: Stages) -> None:
    looks = looks_from(HALF_SURE, stages)
    assert (looks.covered, looks.layers, looks.rows) == (2, [4], "question")
    assert "layer 2" in looks.notes[0]
    sure = replace(HALF_SURE, loss={**HALF_SURE.loss, "random": np.full((2, 3), 10.0)})
    assert looks_from(sure, stages) == Looks(None, [2, 4], "question")
    by_last = replace(HALF_SURE, loss={**HALF_SURE.loss, "last_row": HALF_SURE.loss["text_mean"] - 0.01})
    assert looks_from(by_last, stages).rows == "last"
    assert looks_from(HALF_SURE, fused_at(stages, 5)) == Looks(None, [4], "question")


@pytest.mark.parametrize(("places", "why"), [((), "no place"), ((0,), "no place"), ((3,), "chance")])
def test_where_nothing_can_be_looked_at(
    places: tuple[int, ...], why: str, stages: Stages, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "losses", lambda *_: pytest.fail("ran a model"))
    trial = Trial(None, None, pictures_of(evidence), "kl")
    [looks] = settle_looks(trial, evidence, HALF_SURE, fused_at(stages, *places))
    assert looks.pruner is None
    assert why in looks.notes[0]


def test_a_loss_between_what_was_measured() -> None:
    shares = (1.0, 0.5, 0.25, 1 / 8, 1 / 16, 1 / 32)
    found = [HALF_SURE.at("text_mean", 4, share) for share in shares]
    assert found == pytest.approx([0, 0.005 / 3, 0.01 / 3, 0.005, 0.0125, 0.02])
    assert HALF_SURE.at("text_mean", 4) == pytest.approx(0.0125)


def test_every_schedule_with_its_cost_and_loss(stages: Stages, evidence: Evidence) -> None:
    made = proposals(evidence, HALF_SURE, looks_from(HALF_SURE, stages), stages)
    expected = []
    for cover, ratio in product(SHARES, SHARES):
        if ratio <= cover:
            grid, kept = (round(share * WHOLE) for share in (cover, ratio))
            alone = HALF_SURE.at("random", 2, cover) + HALF_SURE.at("text_mean", 4, ratio)
            expected.append((3 * WHOLE + 2 * grid + 1 * kept, max(0.0005, alone)))
    costs, losses = zip(*sorted(expected), strict=True)
    assert tuple(one.token_layers for one in made) == costs
    assert [one.parts_loss for one in made] == pytest.approx(losses)
    settings = {one.boldness: one.pruner for one in made}
    assert settings[-0.5, -0.25] == SecondLook(
        layers=(4,), keep_ratios=(0.25,), score="attention", cover_layer=3, cover_ratio=0.5, exit_layer=6
    )
    bare = SecondLook(layers=(), keep_ratios=(), score="attention", cover_layer=None, cover_ratio=1.0, exit_layer=6)
    assert settings[-1.0, -1.0] == bare
    assert settings[-0.5, -0.5] == replace(bare, cover_layer=3, cover_ratio=0.5)


def pictures_of(evidence: Evidence) -> list[Any]:
    return [Sample(Path(str(image)), "what is this ?", (), "what") for image in evidence.images]


@pytest.mark.parametrize("growth", [0.5, 1.0])
def test_the_cheapest_harmless_schedule_is_found(
    growth: float, stages: Stages, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a whole always loses as many times the sum of its parts; influence then chooses better still."""
    made = proposals(evidence, HALF_SURE, looks_from(HALF_SURE, stages), stages)
    whole = {one.pruner: growth * one.parts_loss for one in made}
    times = {"attention": 1.0, "influence": 0.5, "prior": 2.0}

    def losses(_: Trial, pruner: Any) -> Any:
        return np.full(len(evidence.images), times[pruner.score] * whole[replace(pruner, score="attention")])

    monkeypatch.setattr(Trial, "losses", losses)
    tolerant = replace(stages, tolerance=0.15)
    looks = list(settle_looks(Trial(None, None, pictures_of(evidence), "kl"), evidence, HALF_SURE, tolerant))[-1]
    best = next(one for one in made if whole[one.pruner] <= 0.15)
    assert best.pruner.layers
    assert looks.pruner == replace(best.pruner, score="influence")
    assert [attempt.pruner.score for attempt in looks.attempts[-3:]] == ["attention", "influence", "prior"]
    assert len(looks.notes) == 1


def test_a_schedule_that_never_gets_harmless_is_said(
    stages: Stages, evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trial, "losses", lambda *_: np.full(len(evidence.images), 2.0))
    looks = list(settle_looks(Trial(None, None, pictures_of(evidence), "kl"), evidence, HALF_SURE, stages))[-1]
    assert len(looks.attempts) <= TRIES + 2
    assert "loses 2.000, more than the tolerance" in looks.notes[-1]


def test_a_whole_analysis_with_a_second_look(tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", 10, (2, 7))
    samples = pictures(tmp_path, 3)
    arguments = {"samples": samples, "out": tmp_path / "out", "count": 4, "checked": 2, "max_new_tokens": 2}
    found = vp.analyze(model, processor, parts=["lens"], second_look=True, **arguments)
    looks = found.looks
    assert looks is not None
    assert found.document["second_look"] == looks.to_dict()
    assert looks.pruner is not None
    assert load_pruner(tmp_path / "out/second-look") == looks.pruner
    rows = {row["name"]: row for row in found.document["check"]}
    assert rows["second look"]["settings"] == looks.pruner.settings()
    told = next(attempt for attempt in looks.attempts if attempt.pruner == looks.pruner)
    again = Trial(model, processor, choose(samples, count=4), "kl", 2).losses(looks.pruner)
    assert told.loss.value == pytest.approx(float(again.mean()), abs=1e-5)
    report = (tmp_path / "out/report.html").read_text()
    assert "A second look instead of the filter" in report
    # Part by part later on: what was found stays, until stages are sought without it.
    kept = vp.analyze(model, processor, parts=["lens"], **arguments)
    assert kept.document["second_look"] == looks.to_dict()
    vp.analyze(model, processor, **{**arguments, "checked": 0})
    with pytest.raises(ConfigError, match="No pruner can be read"):
        load_pruner(tmp_path / "out/second-look")
