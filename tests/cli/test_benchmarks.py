"""`visipruner eval --data FOLDER` from a benchmark's folder to its official scores, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.analysis.planted import planted
from tests.benchmarks.folders import SHORT, jsonl, picture, pope_folder
from visipruner.evaluation.datasets.pope import rates, yes_or_no
from visipruner.evaluation.datasets.vqa import VizWiz
from visipruner.models import loading as models


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    planted(folder, 6, (2, 3))[0].save_pretrained(folder)
    return folder


def test_official_scores_of_every_method(cli, planted_folder, tmp_path):
    folder, out = pope_folder(tmp_path / "pope"), tmp_path / "out"
    arguments = ["eval", "--model", planted_folder, "--data", folder, "--method", "random:keep_tokens=2,layer=1"]
    result = cli(*arguments, "--max-new-tokens", 2, "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "results.json").read_text())
    assert document["benchmark"]["name"] == "pope"
    assert document["benchmark"]["questions"] == document["samples"] == 6
    assert document["submissions"] == {}
    records = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len({record["key"] for record in records}) == 6  # the same question in three categories is three samples
    for row in document["rows"]:
        given = [(yes_or_no(one["given"][row["method"]]["answer"]), one["answers"][0]) for one in records]
        assert row["accuracy"]["value"] == pytest.approx(sum(a == b for a, b in given) / 6)
        assert row["official"]["parts"]["popular"] == pytest.approx(rates(given[2:4]))
        assert row["by_type"]["popular"]["total"] == 2
    assert "| official score | F1 random | F1 popular | F1 adversarial | F1 mean |" in (out / "table.md").read_text()
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    told = {*document, *document["rows"][0], *document["benchmark"], *records[0], *records[0]["given"]["dense"]}
    assert [key for key in sorted(told) if f"`{key}`" not in page] == []
    again = cli(*arguments, "--max-new-tokens", 2, "--out", out)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "results.json").read_text())["rows"] == document["rows"]


def test_a_file_for_the_server(cli, planted_folder, tmp_path):
    folder, out = tmp_path / "vizwiz", tmp_path / "out"
    picture(folder / "test" / "0.jpg")
    jsonl(folder / "llava_test.jsonl", [{"question_id": "0", "image": "0.jpg", "text": "what is this ?" + SHORT}])
    arguments = ["eval", "--model", planted_folder, "--data", folder, "--method", "fastv", "--max-new-tokens", 1]
    result = cli(*arguments, "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "results.json").read_text())
    assert document["rows"][1]["accuracy"] is None
    assert document["rows"][1]["agreement"]["value"] in (0, 1)
    assert document["benchmark"]["server"] == "EvalAI's VizWiz challenge"
    for name, file in document["submissions"].items():
        assert name in ("dense", "fastv")
        assert json.loads((out / file).read_text())[0]["image"] == "0.jpg"
    assert len(document["submissions"]) == 2
    assert "submit the files in" in result.stderr
    assert "give --out DIR" in cli(*arguments).stderr


def test_a_file_for_the_server_that_fails_costs_no_results(cli, planted_folder, tmp_path, monkeypatch):
    folder, out = tmp_path / "vizwiz", tmp_path / "out"
    picture(folder / "test" / "0.jpg")
    jsonl(folder / "llava_test.jsonl", [{"question_id": "0", "image": "0.jpg", "text": "what is this ?" + SHORT}])
    arguments = ["eval", "--model", planted_folder, "--data", folder, "--method", "fastv", "--max-new-tokens", 1]

    def failing(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(VizWiz, "submission", failing)
    result = cli(*arguments, "--out", out)
    assert (result.exit_code, "the disk is full" in result.stderr) == (1, True)
    document = json.loads((out / "results.json").read_text())
    assert ([row["method"] for row in document["rows"]], document["submissions"]) == (["dense", "fastv"], {})
    assert all((out / name).exists() for name in ("table.md", "chart.png", "ranking.png"))


def test_bad_folders(fails, planted_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded the model"))
    common = ["eval", "--model", planted_folder]
    assert "holds no benchmark" in fails(*common, "--data", tmp_path)
    assert "no benchmark 'popes'" in fails(*common, "--data", tmp_path, "--benchmark", "popes")
    assert "--benchmark needs" in fails(*common, "--benchmark", "pope")
    assert "cannot be read as text" in fails(*common, "--data", tmp_path / "nowhere.jsonl")
