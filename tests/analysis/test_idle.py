"""Layers that need not work on the image, from made-up losses."""

from __future__ import annotations

from typing import Any

import pytest

from visipruner.analysis.stages import full_layers, idle_layers
from visipruner.pruners.composed import Composed
from visipruner.pruners.shortv import ShortV
from visipruner.pruners.visipruner import VisiPruner


def analysis(metric: str = "kl") -> dict[str, Any]:
    losses = [2.0, 0.01, 0.03, 0.02, -0.02, 0.0]
    return {
        "stages": {"metric": metric, "tolerance": 0.03},
        "settings": {"plan": {"block": 3}},
        "freeze_blocks": {
            "layer": [0, 1, 4, 5, 8, 11],
            "kl": {"mean": losses, "high": [loss + 0.02 for loss in losses]},
        },
    }


@pytest.mark.parametrize(
    ("layers", "idle"),
    [
        (range(20), (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13)),
        (range(13), (1, 2, 3, 5, 6, 7, 8, 9, 10)),
        (range(2, 11), (5, 6, 7, 8, 9, 10)),
        (range(9, 11), ()),
    ],
)
def test_blocks_of_least_loss_within_the_layers(layers: range, idle: tuple[int, ...]) -> None:
    assert idle_layers(analysis(), layers) == idle


def test_one_image_has_only_means() -> None:
    made = analysis()
    made["freeze_blocks"]["kl"]["high"] = [None] * 6
    assert idle_layers(made, range(20), "high") == idle_layers(made, range(20))


def test_a_cautious_choice_has_fewer() -> None:
    assert idle_layers(analysis(), range(20), "high") == (8, 9, 10, 11, 12, 13)


def test_nothing_without_a_measurement_in_nats() -> None:
    assert idle_layers(analysis("accuracy"), range(20)) == ()
    assert idle_layers({**analysis(), "freeze_blocks": None}, range(20)) == ()


def test_layers_that_have_every_token_can_be_frozen_beside_the_pruner() -> None:
    pruner = VisiPruner(shallow_end=2, filter_layer=6, keep_tokens=4, exit_layer=9)
    assert full_layers(pruner) == range(2, 7)
    Composed(parts=(ShortV(layers=tuple(full_layers(pruner))), pruner)).check(num_layers=10)
    assert full_layers(VisiPruner(stages=("middle",), filter_layer=6, keep_tokens=4)) == range(7)
    assert not full_layers(VisiPruner())
