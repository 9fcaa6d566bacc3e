"""Stages that were planted are found, and only those."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.analysis.planted import make_blind, pictures, planted
from visipruner.analysis import find_stages
from visipruner.analysis.boundaries import Evidence, fusion_places
from visipruner.analysis.joint import proposals
from visipruner.analysis.measuring import NEEDED_FOR_STAGES, Task, measure
from visipruner.analysis.result import Bootstrap
from visipruner.analysis.stages import stages_from
from visipruner.analysis.study import Study
from visipruner.errors import ConfigError

LAYERS = 10


@pytest.mark.parametrize("active", [(3, 4), (5,), (2, 7)], ids=str)
def test_planted_stages_are_recovered(active: tuple[int, ...], tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", LAYERS, active)
    found = find_stages(model, processor, pictures(tmp_path), max_new_tokens=3)
    overall = found.overall
    assert overall.needs_image
    assert overall.shallow_end is not None
    assert overall.exit_layer is not None
    assert overall.shallow_end.low <= active[0] <= overall.shallow_end.high
    assert overall.exit_layer.low <= active[-1] + 1 <= overall.exit_layer.high
    # Windows are one layer wide here, so every needed layer is a place of its own or part of one.
    places = [set(range(part.first_layer, part.last_layer + 1)) for part in overall.fusion]
    together = active[-1] - active[0] == len(active) - 1
    assert places == ([set(active)] if together else [{layer} for layer in active])
    assert any("2 places" in note for note in found.notes) == (not together)


def test_a_model_without_stages_is_reported_as_such(tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", LAYERS, range(LAYERS))
    found = find_stages(model, processor, pictures(tmp_path), max_new_tokens=3)
    assert found.overall.shallow_end is None or found.overall.shallow_end.low == 0
    assert found.overall.exit_layer is None or found.overall.exit_layer.high >= LAYERS - 1


def test_a_model_that_ignores_the_image_shows_no_stages(tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", LAYERS, ())
    found = find_stages(model, processor, pictures(tmp_path), max_new_tokens=3)
    assert not found.overall.needs_image
    assert found.overall.shallow_end is None
    assert found.overall.exit_layer is None
    assert found.pruner is None
    assert found.notes == [
        "Only 3 images were analysed: the 95 % intervals of so few are too narrow; take 10 or more.",
        "Without the image nothing more than the tolerance is lost: these samples show no stages.",
    ]


@pytest.mark.parametrize(("layers", "active"), [(24, (11, 12)), (30, (14, 15)), (24, (7,))], ids=str)
def test_places_are_not_widened_by_their_windows(layers: int, active: tuple[int, ...], tmp_path: Path) -> None:
    """Windows are a tenth of the layers wide: two of 24, three of 30."""
    model, processor = planted(tmp_path / "model", layers, active)
    overall = find_stages(model, processor, pictures(tmp_path), max_new_tokens=1).overall
    assert [(part.first_layer, part.last_layer) for part in overall.fusion] == [(active[0], active[-1])]


def test_a_model_that_never_reads_what_the_image_shows_has_no_stages(tmp_path: Path) -> None:
    """Its answers change where attention on the image is cut, but not where the picture is another one."""
    model, processor = planted(tmp_path / "model", LAYERS, (2, 3, 4))
    make_blind(model, range(LAYERS))
    samples = pictures(tmp_path)
    records = list(measure(model, processor, samples, Task("", "float32", "sdpa", NEEDED_FOR_STAGES, 3)))
    evidence = Study(records).evidence()
    assert evidence.discard[:, 0].mean() > 0.5  # the weight is missed
    assert evidence.swapped.max() < 0.05
    found = find_stages(model, processor, samples, max_new_tokens=3)
    overall = found.overall
    assert not overall.needs_image
    assert (overall.shallow_end, overall.exit_layer, overall.fusion, found.pruner) == (None, None, [], None)
    assert not any(kind.needs_image for kind in found.by_type.values())
    assert any("attention weight but not its content" in note for note in found.notes)


def test_results_of_other_weights_are_not_continued(tmp_path: Path) -> None:
    model, processor = planted(tmp_path / "model", LAYERS, ())
    samples = pictures(tmp_path, 1)[:1]
    find_stages(model, processor, samples, max_new_tokens=1, folder=tmp_path / "out")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    with pytest.raises(ConfigError, match="an analysis with another weights"):
        find_stages(model, processor, samples, max_new_tokens=1, folder=tmp_path / "out")


def staged_evidence(**changes: object) -> Evidence:
    """Twelve samples, eight layers: shallow to layer 2, fusion in layers 3 and 5, vision leaves at 6."""
    samples, layers = 12, 8
    below, discard = np.zeros((samples, layers + 1)), np.zeros((samples, layers + 1))
    below[:, 4:], discard[:, :6] = 1.0, 1.0
    window = np.zeros((samples, layers - 1))
    window[:, [2, 3]], window[:, 5] = 0.5, 0.5
    kept = np.ones((samples, 2, 4))
    kept[:, 1, 2:] = 0
    distance = np.full((samples, layers), 1e-4)
    distance[:, 4] = 0.02
    relative = np.tile(np.linspace(0.1, 1.0, 10), (samples, layers, 1))
    evidence = Evidence(
        below=below,
        discard=discard,
        window=window,
        swapped_window=window,
        swapped=np.ones(samples),
        window_size=2,
        kept=kept,
        budgets=[2, 5],
        layers=[0, 2, 4, 6],
        distance=distance,
        relative_norm=relative,
        images=[number // 2 for number in range(samples)],
        types=["a", "b"] * 6,
    )
    return replace(evidence, **changes)  # type: ignore[arg-type]


def test_everything_is_read_off_the_evidence() -> None:
    found = stages_from(staged_evidence())
    assert vars(found.overall.shallow_end) == {"value": 3.0, "low": 3.0, "high": 3.0}  # type: ignore[arg-type]
    assert found.overall.exit_layer is not None
    assert found.overall.exit_layer.value == 6
    assert [(part.first_layer, part.last_layer) for part in found.overall.fusion] == [(3, 3), (5, 5)]
    assert set(found.by_type) == {"a", "b"}
    assert found.by_type["a"].samples == 6
    assert found.filter is not None
    assert (found.filter.layer, found.filter.budget) == (4, 5)
    assert found.filter.threshold is None  # layer 4 is the first that is looked at after a shallow stage of 3
    assert found.filter.token_threshold == pytest.approx(0.6)  # the fifth largest of ten
    assert found.paper_filter_layers == [4] * 12
    assert found.paper_exit_layers == [7] * 12
    assert found.pruner is not None
    assert found.pruner.settings()["keep_tokens"] == 5
    assert (found.pruner.shallow_end, found.pruner.filter_layer, found.pruner.exit_layer) == (3, 4, 6)
    assert any("2 places" in note for note in found.notes)


def test_layers_that_need_only_the_weight_of_the_image_are_no_fusion() -> None:
    swapped = staged_evidence().window.copy()
    swapped[:, 5] = 0.0
    found = stages_from(staged_evidence(swapped_window=swapped))
    assert [part.layers for part in found.overall.fusion] == ["3"]
    assert found.overall.weight_only == []  # layers 5 and 6 can stand in for each other
    needed = staged_evidence().window.copy()
    needed[:, 4] = 0.5
    found = stages_from(staged_evidence(window=needed, swapped_window=swapped))
    assert ([part.layers for part in found.overall.fusion], found.overall.weight_only) == (["3"], [4, 5])
    assert any("In layers 4-5 answers need the image's attention weight" in note for note in found.notes)
    assert not stages_from(staged_evidence(swapped=np.zeros(12))).overall.needs_image


@pytest.mark.parametrize(
    ("windows", "between", "places"),
    [
        ([0], range(5), ["0"]),  # layer 1 can be spared in the next window
        ([0, 1, 2], range(2, 5), ["2"]),
        ([5, 6], range(8), ["6-7"]),
        ([6], range(8), ["7"]),
        ([2, 3, 4], range(8), ["3-4"]),
        ([2, 3, 4], range(4, 8), ["4"]),
        ([3], range(8), ["3-4"]),  # layers 3 and 4 can stand in for each other
        ([1, 5], range(3, 8), ["5-6"]),
    ],
)
def test_places_lie_where_no_window_can_do_without(windows: list[int], between: range, places: list[str]) -> None:
    needed = np.isin(np.arange(7), windows)
    curve = {name: needed.astype(float) for name in ("mean", "low", "high")}
    assert [part.layers for part in fusion_places(curve, needed, 2, between)] == places


def test_a_budget_that_is_a_share_makes_settings_with_a_share() -> None:
    """Half of the samples have ten tokens, half have four."""
    evidence = staged_evidence(budgets=[0.2, 0.5])
    relative = evidence.relative_norm.copy()
    relative[::2, :, 4:] = np.nan
    found = stages_from(replace(evidence, relative_norm=relative))
    assert found.filter is not None
    assert (found.filter.layer, found.filter.budget) == (4, 0.5)
    assert found.filter.token_threshold == pytest.approx(0.45)  # fifth of ten: 0.6, second of four: 0.3
    assert found.pruner is not None
    assert (found.pruner.keep_tokens, found.pruner.keep_ratio) == (None, 0.5)
    first, *_ = proposals(evidence, [found])
    assert (first.pruner.keep_ratio, first.token_layers) == (0.5, 5 * 10 + 1 * 5)
    assert first.is_as_bold_as(first)


def test_an_early_filter_may_be_better_than_a_later_one() -> None:
    """A later layer that loses more rules it out only where its own interval leaves room for doubt."""
    shallowless = np.repeat([[0.0, 1, 1, 1, 1, 1, 1, 1, 1]], 12, axis=0)
    kept = np.ones((12, 2, 4))
    kept[:, 1] = [0.01, 1.0, 0.0, 0.0]
    choice = stages_from(staged_evidence(below=shallowless, kept=kept)).filter
    assert choice is not None
    assert (choice.layer, choice.budget) == (0, 5)
    kept[::4, 1, 0] = 0.15  # the mean stays within 0.05, some resamples do not
    choice = stages_from(staged_evidence(below=shallowless, kept=kept)).filter
    assert choice is not None
    assert (choice.layer, choice.budget) == (4, 5)


def test_a_threshold_that_finds_the_filter_layer() -> None:
    evidence = staged_evidence(below=np.repeat([[0.0, 0, 1, 1, 1, 1, 1, 1, 1]], 12, axis=0))  # shallow ends at 1
    choice = stages_from(evidence).filter
    assert choice is not None
    assert (choice.layer, choice.hits) == (4, 1)
    assert choice.threshold is not None
    assert 0.98 <= choice.threshold < 0.9999
    noise = evidence.distance.copy()
    noise[:6, 2] = 0.05  # half of the samples fire earlier, and higher
    found = stages_from(replace(evidence, distance=noise))
    assert found.filter is not None
    assert found.filter.hits == 0.5
    assert any("No threshold finds filter layer 4" in note for note in found.notes)


@pytest.mark.parametrize(("images", "warned"), [(1, True), (9, True), (10, False), (12, False)])
def test_few_images_are_said_to_be_few(images: int, warned: bool) -> None:
    found = stages_from(staged_evidence(images=[number % images for number in range(12)]))
    assert any("take 10 or more" in note for note in found.notes) == warned


def test_tolerance_decides_what_counts_as_a_loss() -> None:
    assert stages_from(staged_evidence(), tolerance=1.0).overall.needs_image is False
    with pytest.raises(ConfigError, match="tolerance of 0 or more"):
        stages_from(staged_evidence(), tolerance=-0.1)


def test_no_budget_within_the_tolerance_means_no_proposal() -> None:
    found = stages_from(staged_evidence(kept=np.ones((12, 2, 4))))
    assert found.filter is None
    assert found.pruner is None
    assert any("No budget" in note for note in found.notes)


def test_no_tried_layer_between_the_stages_is_told_as_such() -> None:
    below = np.repeat([[0.0, 0, 0, 0, 0, 0, 1, 1, 1]], 12, axis=0)  # shallow ends at 5, vision leaves at 6
    found = stages_from(staged_evidence(below=below))
    assert found.filter is None
    assert (
        "No layer that was tried lies between the shallow stage below layer 5 and the exit at layer 6: no filter layer "
        "proposed."
    ) in found.notes
    assert not any("No budget" in note for note in found.notes)


def test_notes_claim_no_exit_that_is_not_proposed() -> None:
    """The paper's votes pass at 5, vision is needed up to 6, and one image of six may need it to the end."""
    below = np.repeat([[0.0, 0, 1, 1, 1, 1, 1, 1, 1]], 12, axis=0)
    discard, distance = staged_evidence().discard.copy(), np.full((12, 8), 1e-4)
    discard[:2, 6:8] = 1.0
    distance[:, 2] = 0.02
    found = stages_from(staged_evidence(below=below, discard=discard, distance=distance), tolerance=0.2)
    assert found.pruner is not None
    assert found.pruner.exit_layer is None
    assert (
        "The paper's exit vote would pass before layer 5 (median), vision is needed until layer 6: an exit has to be "
        "fixed."
    ) in found.notes


def test_rounding_makes_no_shallow_end_below_the_first_layer() -> None:
    """With one image nothing cut loses 1e-7, in some resamples more than a tolerance as small."""
    below = staged_evidence().below.copy()
    below[:2, 0] = 1e-7
    overall = stages_from(staged_evidence(below=below), tolerance=3e-8).overall
    assert overall.shallow_end is not None
    assert (overall.shallow_end.value, overall.shallow_end.low) == (3, 0)


def test_disagreement_between_samples_widens_the_interval() -> None:
    below = staged_evidence().below.copy()
    below[:6, 2:] = 1.0  # half the images lose one layer earlier
    found = stages_from(staged_evidence(below=below), tolerance=0.6)
    assert found.overall.shallow_end is not None
    assert found.overall.shallow_end.low < found.overall.shallow_end.high


def test_the_bootstrap_resamples_images_not_questions() -> None:
    values = np.array([[0.0], [0.0], [1.0], [1.0]])
    together = Bootstrap(["x", "x", "y", "y"]).curve(values)
    apart = Bootstrap(["a", "b", "c", "d"]).curve(values)
    assert together["mean"] == apart["mean"] == 0.5
    assert (together["low"], together["high"]) == (0.0, 1.0)
    assert apart["high"] - apart["low"] <= 1.0
    known = Bootstrap(["a", "b"]).curve(np.array([[np.nan, 1.0], [np.nan, 0.0]]))
    assert np.isnan(known["mean"][0])
    assert known["mean"][1] == 0.5


def test_one_image_has_stages_without_intervals() -> None:
    found = stages_from(staged_evidence(images=[0] * 12, types=["a"] * 12))
    assert found.overall.to_dict()["shallow_end"] == {"value": 3.0, "low": None, "high": None}
    assert [part.layers for part in found.overall.fusion] == ["3", "5"]
    assert found.pruner is not None
    assert (found.pruner.shallow_end, found.pruner.exit_layer) == (3, 6)
