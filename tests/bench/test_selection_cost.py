"""`benchmarks/selection_cost.py` times every look of a prompt, on a decoder small enough for a test."""

from __future__ import annotations

import pytest

from benchmarks import selection_cost
from tests.models import text_model


def test_it_times_looks_and_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = text_model("llama")
    monkeypatch.setattr(selection_cost, "build", lambda layers: model)
    found = selection_cost.measure(layers=model.config.num_hidden_layers, rounds=2)
    assert found["look_seconds"] > 0
    assert found["share"] == found["look_seconds"] / found["layer_seconds"]
