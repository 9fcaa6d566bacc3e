"""An actor of examples/ray_eval.py, without a cluster; skipped where Ray is not installed, as in `make test`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.planted import pictures, planted
from visipruner.evaluation import evaluate
from visipruner.pruners.registry import make

pytest.importorskip("ray")
_TIMES = {"seconds", "prefill_seconds", "selection_seconds"}


def test_an_actor_records_what_an_evaluation_records(tmp_path: Path) -> None:
    from examples.ray_eval import Answering

    model, processor = planted(tmp_path, 6, (2, 3))
    model.save_pretrained(tmp_path)
    samples = pictures(tmp_path, 2)
    actor = Answering(str(tmp_path), ["fastv:layer=1"], 2, samples)
    answered = actor({"id": list(range(len(samples)))})
    expected = evaluate(model, processor, samples, {"fastv:layer=1": make("fastv", layer=1)}, max_new_tokens=2)
    records = map(json.loads, answered["record"])
    assert list(map(_untimed, records)) == [_untimed(json.loads(json.dumps(record))) for record in expected]


def _untimed(record: dict[str, Any]) -> dict[str, Any]:
    given = {
        name: {key: value for key, value in one.items() if key not in _TIMES} for name, one in record["given"].items()
    }
    return {**record, "given": given}
