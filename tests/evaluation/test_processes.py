"""Several processes share an evaluation: the table of one, and what a dead one finished is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.analysis.planted import pictures, planted
from visipruner import VisiPruner
from visipruner.cli.app import app
from visipruner.evaluation import evaluate
from visipruner.evaluation import runner as runner_module
from visipruner.evaluation.folder import Processes, join

METHODS = {"early": VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2, exit_layer=4)}
_LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
_TIMES = {"prefill_ratio", "answer_ratio", "selection_share", "threads", "processes"}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    planted(folder, 6, (2, 3))[0].save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_two_launched_processes_give_the_table_of_one(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    lines = [{"image": s.image.name, "question": s.question, "answer": "cat"} for s in pictures(tmp_path, 3)[:5]]
    data.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["eval", "--model", str(model_folder), "--data", str(data), "--max-new-tokens", "2"]
    arguments += ["--method", "fastv", "--out"]
    alone = CliRunner().invoke(app, [*arguments, str(tmp_path / "one")])
    assert alone.exit_code == 0, alone.output
    launched = subprocess.run(
        [sys.executable, *_LAUNCH, "-m", "visipruner", *arguments, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("Saved to") == 1  # the main process alone shows the table
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert _untimed(two) == _untimed(one)
    assert not list((tmp_path / "two").glob("samples.*.jsonl"))
    questions = [[json.loads(line)["key"] for line in _lines(tmp_path / name)] for name in ("one", "two")]
    assert questions[0] == questions[1]


def test_any_number_of_processes_goes_on_where_some_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, samples, out = planted(tmp_path, 6, (2, 3)), pictures(tmp_path, 3), tmp_path / "out"
    out.mkdir()
    asked: list[str] = []
    original = runner_module.Comparison.records
    monkeypatch.setattr(
        runner_module.Comparison,
        "records",
        lambda self, samples, turn: (
            asked.extend(f"{sample.image}{sample.question}" for sample in samples) or original(self, samples, turn)
        ),
    )

    def share(rank: int, count: int) -> Any:
        return evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out, processes=Processes(rank, count))

    next(share(0, 3))
    dying = share(2, 3)
    next(dying)
    dying.close()
    with (out / "samples.2.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # killed while it wrote
    assert len(_lines(out, "samples.0.jsonl")) == 1
    shares = [list(share(rank, 2)) for rank in (0, 1)]
    assert sorted(map(len, shares)) == [3, 3]
    assert len(asked) == len(set(asked)) == len(samples)
    done = list(join(out, samples).values())
    assert [(record["image"], record["question"]) for record in done] == [(str(s.image), s.question) for s in samples]
    assert list(evaluate(*tiny, samples, METHODS, max_new_tokens=1, folder=out)) == done  # nothing is asked again
    assert len(asked) == len(samples)


def test_several_processes_need_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visipruner.evaluation.comparison.launched", lambda: Processes(1, 2))
    result = CliRunner().invoke(app, ["eval"])
    assert result.exit_code == 1
    assert "need --out" in result.stderr


def _untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _untimed(value) for key, value in content.items() if key not in _TIMES}
    return [_untimed(value) for value in content] if isinstance(content, list) else content


def _lines(folder: Path, name: str = "samples.jsonl") -> list[str]:
    return (folder / name).read_text().splitlines()
