"""`visipruner eval` on a tiny checkpoint."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.analysis.planted import pictures, planted
from visipruner import FastV, VisiPruner
from visipruner.evaluation.contenders import Wanted, contenders
from visipruner.evaluation.samples import load_samples
from visipruner.models import loading as models
from visipruner.progress import SILENT


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    planted(folder, 6, (2, 3))[0].save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    return _questions(tmp_path, 3)


def _questions(folder, images):
    path = folder / "data.jsonl"
    lines = [
        {"image": sample.image.name, "question": sample.question, "answer": "cat", "type": sample.type}
        for sample in pictures(folder, images)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_comparison_is_shown_and_saved(cli, planted_folder, data, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "out"
    saved = VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2).save_pretrained(tmp_path / "mine")
    arguments = ["eval", "--model", planted_folder, "--data", data, "--max-new-tokens", 2]
    methods = ["--method", "fastv", "--method", "random:keep_tokens=5+fastv", "--config", saved]
    result = cli(*arguments, *methods, "--out", out)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "results.json").read_text())
    names = ["dense", str(saved), "fastv", "random:keep_tokens=5+fastv"]
    assert [row["method"] for row in document["rows"]] == names
    assert document["methods"]["fastv"]["settings"]["layer"] == 1  # the published layer 2 of 32, at 6 layers
    assert document["samples"] == 6
    assert "| fastv |" in (out / "table.md").read_text()
    assert "|" not in result.stdout
    assert max(map(len, result.stdout.replace(str(out), "").splitlines())) <= 80
    for column in ("accuracy", "against dense", "FLOPs cut", "selection"):
        assert column in result.stdout
    assert "(published, layers at the same depth)" in " ".join(result.stdout.split())
    assert document["methods"]["fastv"]["source"] == "published, layers at the same depth"
    assert (out / "chart.png").exists()
    assert (out / "ranking.png").exists()
    assert len((out / "samples.jsonl").read_text().splitlines()) == 6


def test_records_are_the_same_wherever_the_data_lie(cli, planted_folder, data, tmp_path, monkeypatch):
    out, moved = tmp_path / "out", tmp_path / "moved"
    methods = ["--method", "random", "--match", "flops", "--cut", 0.5, "--max-new-tokens", 1, "--out", out]
    assert cli("eval", "--model", planted_folder, "--data", data, *methods).exit_code == 0
    records = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {record["image"] for record in records} == {"0.png", "1.png", "2.png"}
    shutil.copytree(data.parent, moved, ignore=lambda *_: [out.name, moved.name])
    monkeypatch.setattr("visipruner.evaluation.contenders.matched", lambda *_: pytest.fail("matched again"))
    monkeypatch.setattr("visipruner.evaluation.runner.Comparison.records", lambda *_: pytest.fail("asked again"))
    again = cli("eval", "--model", planted_folder, "--data", moved / data.name, *methods)
    assert again.exit_code == 0, again.output


def test_answers_to_other_data_are_not_mixed(cli, planted_folder, data, tmp_path):
    out = tmp_path / "out"
    common = ["eval", "--model", planted_folder, "--method", "random", "--max-new-tokens", 1, "--out", out]
    assert cli(*common, "--data", data, "--samples", 2).exit_code == 0
    before = (out / "samples.jsonl").read_text()
    other = tmp_path / "noisy" / data.name
    other.parent.mkdir()
    pictures(other.parent, 3, seed=9)
    shutil.copy(data, other)
    refused = cli(*common, "--data", other)
    assert (refused.exit_code, "answers about another picture called" in refused.stderr) == (1, True)
    other.write_text(data.read_text() + "\n")
    refused = cli(*common, "--data", other)
    assert (refused.exit_code, "an evaluation with other data;" in refused.stderr) == (1, True)
    assert (out / "samples.jsonl").read_text() == before


def test_answers_of_other_weights_are_not_mixed(cli, planted_folder, data, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(planted_folder, folder)
    evaluated = ["eval", "--model", folder, "--data", data, "--samples", 1, "--max-new-tokens", 1, "--method", "random"]
    analysed = ["analyze", "--model", folder, "--data", data, "--samples", 1, "--max-new-tokens", 1, "--only", "lens"]
    for command in (evaluated, analysed):
        assert cli(*command, "--out", out / command[0]).exit_code == 0
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        model.model.language_model.layers[-1].mlp.up_proj.weight.mul_(1.01)
    model.save_pretrained(folder)
    for command in (evaluated, analysed):
        refused = cli(*command, "--out", out / command[0])
        assert refused.exit_code == 1
        assert "weights; choose another --out" in refused.stderr


def test_matched_budgets(cli, planted_folder, data, tmp_path):
    budgets = ["--match", "flops", "--cut", 0.3, "--cut", 0.5]
    methods = ["--method", "random", "--method", "schedule:layers=[1],keep=[3]", "--fixed", "few=random:keep_tokens=2"]
    result = cli("eval", "--model", planted_folder, "--data", data, *methods, *budgets, "--json", "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert [row["method"] for row in document["rows"]] == ["dense", "few", "random @ 30%", "random @ 50%"]
    assert document["methods"]["few"]["settings"]["keep_tokens"] == 2
    for row, cut in zip(document["rows"][2:], (0.3, 0.5), strict=True):
        assert row["flops_cut"] == pytest.approx(cut, abs=0.02)
    assert "has no budget" in document["left_out"]["schedule:layers=[1],keep=[3] @ 30%"]


def test_budgets_are_matched_once(cli, planted_folder, tmp_path, monkeypatch):
    """With many images the first of a few samples is hardly ever the first of all."""
    data, out = _questions(tmp_path, 8), tmp_path / "out"
    methods = ["--method", "random", "--method", "schedule:layers=[1],keep=[3]", "--match", "tokens", "--cut", 0.52]
    arguments = ["eval", "--model", planted_folder, "--data", data, *methods, "--max-new-tokens", 1, "--out", out]
    result = cli(*arguments, "--samples", 2)
    assert result.exit_code == 0, result.output
    before = json.loads((out / "results.json").read_text())
    monkeypatch.setattr("visipruner.evaluation.contenders.matched", lambda *_: pytest.fail("matched again"))
    result = cli(*arguments)
    assert result.exit_code == 0, result.output
    after = json.loads((out / "results.json").read_text())
    assert after["samples"] > before["samples"]
    assert (after["methods"], after["left_out"]) == (before["methods"], before["left_out"])


def test_close_budgets_are_told_apart(cli, planted_folder, data, tmp_path):
    methods = ["--method", "random", "--method", "random", "--match", "tokens", "--max-new-tokens", 1]
    common = ["eval", "--model", planted_folder, "--data", data, "--samples", 1, *methods]
    result = cli(*common, "--cut", 0.518, "--cut", 0.56, "--cut", 0.521, "--cut", 0.56, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    names = ["random @ 51.8%", "random @ 56%", "random @ 52.1%"]
    assert [row["method"] for row in document["rows"]] == ["dense", *names]
    assert set(document["methods"]) == set(names)


def test_a_comparison_of_nothing_is_refused(cli, planted_folder, data):
    """The tiny picture has 25 tokens: half of them cannot be cut to within a hundredth."""
    methods = ["--method", "random", "--match", "tokens", "--cut", 0.501]
    result = cli("eval", "--model", planted_folder, "--data", data, *methods)
    assert result.exit_code == 1
    assert "all were left out" in result.stderr
    assert "cannot cut 50.1% of tokens" in result.stderr


def test_matches_belong_to_their_cut(planted_folder, data, tmp_path, monkeypatch):
    """Two cuts that one label could stand for."""
    loaded, samples, tried = models.load(str(planted_folder)), load_samples(data)[:1], []

    def matched(model, prompts, pruner, match, cut):
        tried.append(cut)
        return FastV(keep_ratio=cut)

    monkeypatch.setattr("visipruner.evaluation.contenders.matched", matched)
    for cut in (0.5, 0.5000001, 0.5):
        wanted = Wanted(["fastv"], match="tokens", cuts=[cut])
        found, _ = contenders(wanted, loaded, samples, tmp_path, True, SILENT)
        assert [one.pruner for one in found.values()] == [FastV(keep_ratio=cut)]
    assert tried == [0.5, 0.5000001]


def test_budgets_of_their_own_kind_are_matched_too(cli, planted_folder, data, tmp_path):
    methods = [option for name in ("vtw", "fitprune", "sparsevlm") for option in ("--method", name)]
    methods += ["--match", "tokens", "--cut", 0.5]
    result = cli("eval", "--model", planted_folder, "--data", data, *methods, "--json", "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["methods"]["vtw @ 50%"]["settings"]["layer"] == 3  # of 6
    tokens = {row["method"]: row["visual_tokens"] for row in document["rows"]}
    assert tokens["vtw @ 50%"] == pytest.approx(tokens["dense"] / 2)
    for name in ("fitprune", "sparsevlm"):
        assert tokens[f"{name} @ 50%"] == pytest.approx(tokens["dense"] / 2, rel=0.1)


def test_every_method_that_runs(cli, planted_folder, data, tmp_path):
    result = cli(
        "eval",
        "--model",
        planted_folder,
        "--data",
        data,
        "--method",
        "all",
        "--json",
        "--samples",
        1,
        "--max-new-tokens",
        1,
    )
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    ran = {row["method"] for row in document["rows"]}
    assert {"dense", "visipruner", "fastv", "random", "divprune", "fastervlm"} <= ran
    assert not ran & {"none", "composed", "schedule", "visipruner-reference"}
    assert set(document["left_out"]) == {"downsample", "vcola"}
    assert "knows one size only" in document["left_out"]["downsample"]  # CLIP
    assert "linear attention" in document["left_out"]["vcola"]


def test_bad_input(fails, planted_folder, data, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded the model"))
    common = ["eval", "--model", planted_folder, "--data", data]
    assert "--match needs" in fails(*common, "--match", "flops")
    assert "--cut needs" in fails(*common, "--cut", 0.5)
    assert "above 0 and below 1" in fails(*common, "--match", "flops", "--cut", 1)
    assert "above 0 and below 1" in fails(*common, "--match", "flops", "--cut", 0.5, "--cut", 0)
    fixed = ["--fixed", "x=random:keep_ratio=0.5", "--fixed"]
    assert "2 settings have the name 'x'" in fails(*common, *fixed, "x=fastv:layer=1")
    assert "the name 'random'" in fails(*common, "--method", "random", *fixed, "random=fastv:layer=1")
    assert "no method 'fastvv'" in fails(*common, "--method", "fastvv")
    assert "--data" in fails("eval", "--model", planted_folder)


def test_samples_in_batches(cli, planted_folder, data):
    arguments = ["eval", "--model", planted_folder, "--data", data, "--max-new-tokens", 2, "--method", "fastv"]
    alone, together = (cli(*arguments, "--json", "--batch-size", size) for size in (1, 4))
    rows = [json.loads(result.stdout)["rows"] for result in (alone, together)]
    assert [[row[key] for row in rows[0]] for key in ("accuracy", "agreement", "visual_tokens")] == [
        [row[key] for row in rows[1]] for key in ("accuracy", "agreement", "visual_tokens")
    ]
    assert json.loads(together.stdout)["batch_size"] == 4
    refused = cli(*arguments, "--batch-size", 2, "--share-images")
    assert refused.exit_code != 0
    assert "share no image" in " ".join(refused.output.split())
