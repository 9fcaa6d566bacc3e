"""`visipruner bench` on a tiny shape."""

from __future__ import annotations

import json

import pytest
import torch

from visipruner.cli.errors import CliError
from visipruner.models import loading as models
from visipruner.speed.checks import CHECKS
from visipruner.speed.host_work import BOUNDS
from visipruner.speed.measure import DENSE, TEXT

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_the_command_measures_and_saves(cli, tmp_path):
    arguments = ["bench", "--shape", "tiny", "--dtype", "float32", "--rounds", 1, "--new-tokens", 2]
    result = cli(*arguments, "--visual", 16, "--visual", 64, "--method", "fastv", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert [point["visual"] for point in document["points"]] == [16, 64]
    assert [row["name"] for row in document["points"][0]["rows"]] == [DENSE, "fastv", TEXT]
    assert document["points"][0]["tower_seconds"]["median"] > 0
    assert (tmp_path / "results.png").exists()
    assert "| fastv |" in (tmp_path / "results.md").read_text()


def test_a_shape_to_try_says_that_it_is_no_measure(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["bench", "--shape", "tiny", "--dtype", "float32", "--rounds", 1, "--new-tokens", 1, "--visual", 16]
    shown = cli(*arguments, "--no-warm-up", "--method", "fastv").stdout
    assert "no measure of speed" in " ".join(shown.split())
    assert "|" not in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_real_checkpoint_is_asked_about_a_picture(cli, llava_folder, tmp_path):
    arguments = ["bench", "--model", llava_folder, "--rounds", 1, "--new-tokens", 2, "--method", "fastv"]
    result = cli(*arguments, "--method", "visipruner", "--schedule", "filter=2,keep=3,exit=3", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "results.json").read_text())
    (point,) = document["points"]
    dense, fastv, ours, text = point["rows"]
    assert [row["name"] for row in point["rows"]] == [DENSE, "fastv", "visipruner", TEXT]
    assert point["visual"] > 0
    assert dense["flops"] > fastv["flops"] > text["flops"]
    assert ours["kv_bytes"] < dense["kv_bytes"]
    assert "vision tower" in document["model"]["notes"][0]


@pytest.mark.parametrize("name", list(CHECKS))
def test_every_check_runs_in_small(cli, name, tmp_path):
    small = ["--shape", "tiny", "--visual", 40, "--rounds", 1, "--dtype", "float32", "--json"]
    result = cli("bench", "--check", name, *small, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    (check,) = json.loads(result.stdout)["checks"]
    assert check["check"] == name
    assert check["targets"]
    assert all(isinstance(target["met"], bool) for target in check["targets"])
    table = tmp_path / f"{name}.md"
    has_no_table = name in ("questions", "host")  # targets alone
    assert has_no_table == (not check["points"]) == (not table.exists())
    assert has_no_table or "| dense |" in table.read_text()


def test_the_hosts_work_is_told_target_by_target(cli):
    result = cli("bench", "--check", "host")
    assert result.exit_code == 0, result.output
    assert "32 tiny Llama layers, float32; counts, no seconds" in result.stdout
    assert result.stdout.count("met     ") == 4 * len(BOUNDS)


def test_a_model_of_the_hub_may_be_downloaded(cli, monkeypatch):
    asked = []

    def load(name, **loading):
        asked.append(loading["allow_download"])
        raise CliError("That is all.")

    monkeypatch.setattr(models, "load", load)
    monkeypatch.setattr(models, "prepare", lambda name: None)
    for more in ([], ["--allow-download"]):
        assert cli("bench", "--model", "someone/something", *more).exit_code == 1
    assert asked == [False, True]


def test_a_check_runs_with_the_attention_that_was_asked_for(cli):
    small = ["--shape", "tiny", "--visual", 40, "--rounds", 1, "--dtype", "float32", "--json"]
    result = cli("bench", "--check", "overhead", *small, "--attn", "eager")
    assert result.exit_code == 0, result.output
    (check,) = json.loads(result.stdout)["checks"]
    assert check["model"]["attention"] == "eager"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--check", "prefil"], "Did you mean 'prefill'"),
        pytest.param(["--check", "gpu"], "needs a CUDA build of torch", marks=NO_GPU),
        (["--check", "prefill", "--method", "fastv"], "brings its own"),
        (["--device", "tpu"], "cpu or cuda"),
        (["--model", "some/one", "--layers", "4"], "brings its own size"),
        (["--model", "some/one", "--batch", "2"], "brings its own size"),
        (["--model", "some/one", "--before", "9"], "brings its own size"),
        (["--check", "prefill", "--after", "9"], "brings its own methods"),
        (["--model", "some/one", "--image", "missing.jpg"], "There is no file missing.jpg"),
        (["--model", "nothing"], "There is no model"),
        (["--shape", "tiny", "--image", "missing.jpg"], "for a real checkpoint"),
        (["--check", "prefill", "--question", "Why?"], "for a real checkpoint"),
        (["--shape", "tiny", "--dtype", "float32", "--method", "visionzip"], "looks at the vision tower"),
    ],
)
def test_commands_that_cannot_be_carried_out(cli, arguments, said):
    result = cli("bench", *arguments)
    assert result.exit_code == 1
    assert said in result.stderr
