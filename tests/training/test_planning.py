"""What `visipruner plan` suggests from an analysis can be built."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.models import llava_model
from visipruner.models.shape import ModelShape
from visipruner.training.planning import choices, suggestions
from visipruner.training.settings import Alignment


def analysed(layers: int, start: Any, end: Any, chosen: Any, blocks: list[int]) -> dict[str, Any]:
    def interval(found: Any) -> Any:
        return None if found is None else dict(zip(("low", "value", "high"), found, strict=True))

    return {
        "model": {"layers": layers, "visual_tokens": 576},
        "stages": {
            "overall": {"shallow_end": interval(start), "exit_layer": interval(end)},
            "filter": None if chosen is None else {"layer": chosen, "budget": 64},
            "metric": "kl",
            "tolerance": 0.05,
        },
        "settings": {"plan": {"block": 4}},
        "freeze_blocks": {"layer": blocks, "kl": {"mean": [0.01] * len(blocks), "high": [0.02] * len(blocks)}},
    }


ANALYSES = {
    "the testbed's": json.loads((Path(__file__).parents[2] / "docs/analysis/analysis.json").read_text()),
    "one image": analysed(30, (None, 3, None), (None, 23, None), 12, [20]),
    "frozen on both sides of the filter": analysed(32, (4, 8, 12), (20, 24, 28), 10, [2, 16]),
    "frozen up to the exit": analysed(30, (3, 4, 6), (23, 24, 25), 12, [20]),
    "filter before the last layer": analysed(24, None, None, 22, [0, 18]),
    "no layer needs to see": analysed(32, (30, 32, 32), (31, 31, 31), None, []),
    "a middle of one layer": analysed(32, (7, 8, 8), (9, 9, 9), 8, [4]),
    "no evidence": analysed(32, None, None, None, []),
}


@pytest.mark.parametrize("analysis", ANALYSES)
def test_each_row_of_a_plan_can_be_built(analysis: str) -> None:
    shape = ModelShape.from_config(llava_model(text="llama-mha").config)
    for suggestion, layers in product(suggestions(ANALYSES[analysis]), (1, 2, 3, 5, 12, 24, 28, 30, 32, 40, 64, 80)):
        for choice in choices(replace(shape, num_layers=layers), 144, 74, suggestion):
            seen = [layer for layer, rows in enumerate(choice.rows) if rows]
            full = [layer for layer in seen if choice.rows[layer] == 144]
            is_sparse = full != seen
            Alignment(
                inject_layer=seen[0],
                exit_layer=seen[-1] + 1,
                filter_layer=full[-1] if is_sparse else None,
                keep_tokens=choice.rows[seen[-1]] if is_sparse else None,
                frozen_layers=choice.frozen,
            ).check(layers)
            assert ("f" in choice.guidelines) == bool(choice.frozen)


def test_a_sparse_middle_is_planned_with_the_frozen_layers_below_it() -> None:
    shape = replace(ModelShape.from_config(llava_model(text="llama-mha").config), num_layers=32)
    estimate, _ = suggestions(ANALYSES["frozen on both sides of the filter"])
    found = {choice.guidelines: choice for choice in choices(shape, 576, 74, estimate)}
    assert found["f+b+c"].frozen == (2, 3, 4, 5)
    assert found["f+c"].frozen == (2, 3, 4, 5, 16, 17, 18, 19)
    estimate, _ = suggestions(ANALYSES["frozen up to the exit"])
    assert "f+b+c" not in {choice.guidelines for choice in choices(shape, 576, 74, estimate)}


def test_plan_reads_an_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visipruner.cli.plan import plan

    def interval(value: float, low: float, high: float) -> dict[str, float]:
        return {"value": value, "low": low, "high": high}

    overall = {"samples": 5, "shallow_end": interval(8, 4, 12), "exit_layer": interval(24, 20, 28)}
    chosen = {"layer": 10, "budget": 32, "loss": interval(0.02, 0.01, 0.03)}
    document = {
        "model": {"name": "made-up", "layers": 32, "visual_tokens": 576},
        "stages": {"overall": overall, "filter": chosen, "metric": "kl", "tolerance": 0.05, "notes": []},
        "settings": {"plan": {"block": 4}},
        "freeze_blocks": {
            "layer": [0, 2, 4, 6, 16, 18, 20, 26],
            "kl": {
                "mean": [2.0, 0.01, 0.03, 0.04, 0.03, 0.06, -0.01, 0.0],
                "high": [3.0, 0.04, 0.05, 0.05, 0.05, 0.08, 0.05, 0.01],
            },
        },
    }
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    plan(analysis=tmp_path, shape=["7b"], save=tmp_path / "plan.json")
    assert "k = 8, e = 24, n = 32 after layer 10" in " ".join(capsys.readouterr().out.split())
    estimate, cautious = json.loads((tmp_path / "plan.json").read_text())["shapes"]
    rows = {row["guidelines"]: row for row in estimate["choices"]}
    # The best is 20-23 (26-29 is after the exit), then 2-5, then 16-19; 4-7 overlaps, and 6-9 is one too many.
    assert rows["f+c"]["frozen_layers"] == [2, 3, 4, 5, 16, 17, 18, 19, 20, 21, 22, 23] == rows["f"]["frozen_layers"]
    assert cautious["suggestion"]["frozen_layers"] == [2, 3, 4, 5]
    assert rows["a+b+c"]["visual_rows"] == [0] * 8 + [576] * 3 + [32] * 13 + [0] * 8
    d, m, n, t = 4096, 11008, 650, 74
    per_layer = {rows: 2 * (4 * rows * d * d + 2 * rows * rows * d + 3 * rows * d * m) for rows in (n, t)}
    assert rows["a+c"]["prefill_flops"] == 16 * per_layer[n] + 16 * per_layer[t]
    seen = 2 * (2 * t * d * d + 2 * n * d * d + 2 * t * n * d + 3 * t * d * m)
    assert rows["f+c"]["prefill_flops"] == 12 * seen + 12 * per_layer[n] + 8 * per_layer[t]
    assert rows["f+c"]["kv_bytes"] == rows["c"]["kv_bytes"]
    assert rows["-"]["train_flops_full"] == 3 * 32 * per_layer[n]
    assert (cautious["suggestion"]["inject_layer"], cautious["suggestion"]["exit_layer"]) == (4, 28)
    chosen["budget"] = 1 / 16  # a share, where images differ in their tokens
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    plan(analysis=tmp_path, shape=["7b"])
    told = " ".join(capsys.readouterr().out.split())
    assert "(b) 6.25 % of the tokens after layer 10" in told
    assert "n = 36 after layer 10" in told
    alone = {"low": None, "high": None}  # one image
    overall["shallow_end"] |= alone
    chosen["loss"] |= alone
    (tmp_path / "analysis.json").write_text(json.dumps(document))
    plan(analysis=tmp_path, shape=["7b"])
    told = " ".join(capsys.readouterr().out.split())
    assert "below layer 8 (b)" in told
    assert "after layer 10, loss 0.020 (c)" in told
    with pytest.raises(typer.Exit):
        plan(analysis=tmp_path / "nowhere")
    assert "no analysis" in capsys.readouterr().err
