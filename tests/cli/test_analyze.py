"""`visipruner analyze` on a tiny checkpoint: results, resuming, and clear words for bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.analysis.planted import pictures, planted
from visipruner import load_pruner
from visipruner.analysis.stages import stages_from
from visipruner.models import loading as models
from visipruner.pruners.composed import Composed
from visipruner.pruners.visipruner import VisiPruner


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    planted(folder, 10, (3, 4))[0].save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [
        {"image": sample.image.name, "question": sample.question, "type": sample.type}
        for sample in pictures(tmp_path, 4)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def _unwrapped(result):
    return " ".join(result.stdout.split())


def test_a_whole_analysis(cli, planted_folder, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["analyze", "--model", planted_folder, "--data", data, "--out", out, "--max-new-tokens", 2]
    result = cli(*arguments, "--samples", 6, "--checked", 2, "--second-look")
    assert result.exit_code == 0, result.output
    document = json.loads((out / "analysis.json").read_text())
    assert document["model"]["layers"] == 10
    looks = document["second_look"]
    assert (out / "second-look/pruner.json").exists() == (looks["pruner"] is not None)
    assert all(note in _unwrapped(result) for note in looks["notes"])
    assert document["settings"]["samples"] == 6
    assert document["stages"]["overall"]["shallow_end"]["value"] == 3
    assert document["stages"]["overall"]["exit_layer"]["value"] == 5
    assert "shallow ends before layer  3" in result.stdout
    assert (out / "pruner.json").exists() == (document["stages"]["pruner"] is not None)
    # Again: everything is there already.
    again = cli(*arguments, "--samples", 6, "--checked", 0)
    assert again.exit_code == 0
    assert json.loads((out / "analysis.json").read_text())["sweeps"] == document["sweeps"]


def test_settings_that_lose_little_are_saved_and_checked(cli, planted_folder, data, tmp_path, monkeypatch):
    # Layers 0 to 3 of the planted model all work on the image, and what its filter loses depends on the samples.
    pruner = VisiPruner(shallow_end=3, filter_layer=3, keep_tokens=6, exit_layer=5)
    monkeypatch.setattr(
        "visipruner.analysis.run.settle",
        lambda trial, evidence, *_: [replace(stages_from(evidence), pruner=pruner)],
    )
    monkeypatch.setattr("visipruner.analysis.run.idle_layers", lambda analysis, layers: tuple(layers)[:1])
    out = tmp_path / "out"
    arguments = ["analyze", "--model", planted_folder, "--data", data, "--out", out, "--max-new-tokens", 2]
    result = cli(*arguments, "--samples", 6, "--checked", 2)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "analysis.json").read_text())
    proposed, whole = load_pruner(out), load_pruner(out / "frozen")
    assert isinstance(whole, Composed)
    assert proposed.settings() == document["stages"]["pruner"]
    assert [part.settings() for part in whole.parts] == [{"layers": [3]}, proposed.settings()]
    dense, first, second, paper = document["check"]
    assert (dense["name"], first["name"], second["name"]) == ("dense", "proposed", "proposed, frozen in 3")
    assert (first["settings"], second["settings"]) == (proposed.settings(), whole.settings())
    assert 0 == dense["flops_cut"] < first["flops_cut"] < second["flops_cut"]
    assert paper["name"].startswith("paper")
    for note in ("Only 3 images were analysed", "Only one image was used for the check"):
        assert _unwrapped(result).count(note) == 1
    # A part alone: what was measured is measured still, unless the samples are others.
    assert cli(*arguments, "--samples", 6, "--only", "lens").exit_code == 0
    kept = json.loads((out / "analysis.json").read_text())
    assert (kept["stages"], kept["check"]) == (document["stages"], document["check"])
    assert load_pruner(out).settings() == proposed.settings()
    assert cli(*arguments, "--samples", 2, "--only", "lens").exit_code == 0
    assert not {"stages", "check"} & json.loads((out / "analysis.json").read_text()).keys()
    # Without a check the settings are saved all the same, and a note says why there is none.
    for samples, checked, why in ((6, 0, "none were to be checked"), (8, 2, "no images were left for that")):
        result = cli(*arguments, "--samples", samples, "--checked", checked)
        assert f"The proposed settings were not tried on images that were not analysed ({why})." in _unwrapped(result)
        document = json.loads((out / "analysis.json").read_text())
        assert "check" not in document
        assert why in document["stages"]["notes"][-1]
        assert load_pruner(out / "frozen").settings() == whole.settings()
    # Once more, with other evidence: what is not proposed any more does not stay behind.
    monkeypatch.setattr("visipruner.analysis.run.idle_layers", lambda analysis, layers: ())
    assert cli(*arguments, "--samples", 6, "--checked", 2).exit_code == 0
    assert (out / "pruner.json").exists()
    assert not (out / "frozen" / "pruner.json").exists()


def test_only_some_parts(cli, planted_folder, data, tmp_path):
    out = tmp_path / "out"
    result = cli("analyze", "--model", planted_folder, "--data", data, "--out", out, "--only", "lens", "--samples", 2)
    assert result.exit_code == 0, result.output
    document = json.loads((out / "analysis.json").read_text())
    assert "lens" in document
    assert "sweeps" not in document
    assert "stages" not in document
    assert "Only one image was analysed, which gives no intervals; take 10 or more." in _unwrapped(result)


def test_bad_input(fails, planted_folder, llava_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("loaded the model"))
    out = tmp_path / "out"
    assert "--data" in fails("analyze", "--model", planted_folder, "--out", out)
    without = fails("analyze", "--model", planted_folder, "--data", data, "--out", out, "--metric", "accuracy")
    assert "needs the right answer of every sample" in without
    assert "no part 'nothing'" in fails("analyze", "--out", out, "--only", "nothing")
    assert "cannot be read as text" in fails("analyze", "--data", tmp_path / "none.jsonl", "--out", out)
    assert "Cannot write to --out" in fails("analyze", "--model", planted_folder, "--data", data, "--out", data)


def test_results_of_another_model_are_not_continued(cli, fails, planted_folder, llava_folder, data, tmp_path):
    common = ["analyze", "--data", data, "--out", tmp_path / "out", "--only", "lens", "--samples", 1]
    assert cli(*common, "--model", planted_folder).exit_code == 0
    assert "analysis with another model" in fails(*common, "--model", llava_folder)
