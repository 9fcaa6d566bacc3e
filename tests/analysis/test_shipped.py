"""The analysis in docs says what its own curves say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from visipruner.analysis.boundaries import fusion_places

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs/analysis/analysis.json").read_text())


def places(
    found: dict[str, Any], kl: dict[str, list[float]], swapped: dict[str, list[float]], least: float
) -> list[list[int]]:
    """Where windows lose more than the tolerance, and surely more than `least`, between the boundaries: where text
    cannot see the image, and where it sees another picture."""
    stages, size = DOCUMENT["stages"], DOCUMENT["settings"]["plan"]["window"]
    first = 0 if found["shallow_end"] is None else int(found["shallow_end"]["value"])
    end = stages["num_layers"] if found["exit_layer"] is None else int(found["exit_layer"]["value"])
    curve = {name: np.array(kl[name]) for name in ("mean", "low", "high")}
    needed = (curve["mean"] > stages["tolerance"]) & (curve["low"] > least)
    needed &= (np.array(swapped["mean"]) > stages["tolerance"]) & (np.array(swapped["low"]) > least)
    return [[part.first_layer, part.last_layer] for part in fusion_places(curve, needed, size, range(first, end))]


def test_places_of_fusion_are_those_of_the_curves() -> None:
    stages, windows, swaps = DOCUMENT["stages"], DOCUMENT["sweeps"]["sweep_window"], DOCUMENT["control"]["swap_window"]
    found = [(stages["overall"], windows, swaps)]
    for kind, one in stages["by_type"].items():
        if one["needs_image"]:
            found.append((one, windows["by_type"][kind], swaps["by_type"][kind]))
    for one, measured, swapped in found:
        told = [[part["first_layer"], part["last_layer"]] for part in one["fusion"]]
        # Curves are written in steps of 1e-5: a low end of 0 may have been more.
        assert told in [places(one, measured["kl"], swapped["kl"], least) for least in (0, -1e-5)]
    assert "Fusion happens at 3 places, not one: layers 8-9 and 15 and 23." in stages["notes"]
