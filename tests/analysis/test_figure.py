"""Every result can be drawn; what a figure shows is what the arrays hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.analysis.cases import read
from visipruner import analysis
from visipruner.analysis.result import Result


def _results() -> list[Result]:
    model, _, reading = read([5, 0, 6])
    with analysis.Probe(model) as probe:
        sweep = analysis.sweep(probe, reading, "window", window=2)
        return [
            sweep,
            analysis.discard(probe, reading),
            analysis.shallow_ablations(probe, reading, 2),
            analysis.remove_from_cache(probe, reading, [(0, 3), (3, 6)]),
            analysis.visual_attention(reading),
            analysis.token_influence(reading),
            analysis.logit_lens(probe, reading),
            Result.stack([sweep, sweep]),
        ]


def test_every_result_has_a_figure() -> None:
    for result in _results():
        file = io.BytesIO()
        result.figure().savefig(file, format="png")
        assert Image.open(file).size[0] > 300, result.name


def test_curves_are_the_arrays() -> None:
    sweep = _results()[0]
    panels = {panel.get_title(loc="left"): panel for panel in sweep.figure().axes}
    assert set(panels) == {"kl", "agrees", "logprob"}  # no right answer is known
    line = panels["kl"].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), sweep["kl"].labels("layer"))
    np.testing.assert_allclose(line.get_ydata(), sweep["kl"].values)
    assert panels["kl"].get_ylabel() == "nats"


def test_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="2 axes but 1 names"):
        analysis.Labelled(np.zeros((2, 2)), ("layer",), "nats")
    with pytest.raises(ValueError, match="axis layer has 2 places, not 3"):
        analysis.Labelled(np.zeros(2), ("layer",), "nats", {"layer": [1, 2, 3]})
