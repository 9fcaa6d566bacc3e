"""What a method's name means: one rule, wherever it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from visipruner import FastV, VisiPruner
from visipruner.cli.app import app
from visipruner.errors import ConfigError
from visipruner.models import packaged
from visipruner.specs import adjusted, resolve

OURS = VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=9)


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model that brings `OURS` along."""
    monkeypatch.setattr(packaged, "calibrated", lambda name: OURS if name == "ours" else None)
    return "ours"


def test_a_bare_name_is_fitted_to_the_model(calibrated: str) -> None:
    found = resolve("visipruner", calibrated, 6)
    assert (found.pruner, found.source) == (OURS, "calibrated for ours")
    assert resolve("visipruner", "other", 6).pruner == VisiPruner.for_depth(6)
    assert resolve("fastv", calibrated, 6).pruner == FastV(layer=1)  # layer 2 of 32 is published


@pytest.mark.parametrize("spec", ["visipruner:", "visipruner:shallow_end=6"])
def test_a_name_with_settings_is_the_published_ones(calibrated: str, spec: str) -> None:
    found = resolve(spec, calibrated, 6)
    assert (found.pruner, found.source) == (VisiPruner(), "published, with what is written")


def test_settings_beside_a_bare_name_change_what_it_means(calibrated: str) -> None:
    found = adjusted("visipruner", {"shallow_end": 0}, calibrated, 6)
    assert found.pruner == VisiPruner(shallow_end=0, filter_layer=2, keep_tokens=9)
    assert found.source == "calibrated for ours; given: shallow_end"
    share = adjusted("visipruner", {"keep_ratio": 0.5}, calibrated, 6).pruner  # one budget in place of the other
    assert share == VisiPruner(shallow_end=1, filter_layer=2, keep_ratio=0.5)


def test_what_is_no_name(calibrated: str) -> None:
    for spec, told in (("", "is empty"), (" ", "is empty"), ("fastw", "did you mean 'fastv'")):
        with pytest.raises(ConfigError, match=told):
            resolve(spec, calibrated, 6)
    with pytest.raises(ConfigError, match="write them into it"):
        adjusted("fastv:layer=1", {"keep_tokens": 3}, calibrated, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.cli.tiny_llava import save_llava

    return save_llava(tmp_path_factory.mktemp("llava"))


def test_commands_agree_and_say_which_settings(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.analysis.planted import pictures

    monkeypatch.setattr(packaged, "calibrated", lambda name: OURS)
    image = pictures(tmp_path, 1)[0].image
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": image.name, "question": "what is this ?"}))
    common = ["--model", str(folder), "--max-new-tokens", "1", "--json"]

    def ran(*more: str) -> Any:
        result = CliRunner().invoke(app, ["run", str(image), "-q", "what is this ?", *common, *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["method"]

    def compared(*more: str) -> Any:
        result = CliRunner().invoke(app, ["eval", "--data", str(tmp_path / "data.jsonl"), *common, *more])
        assert result.exit_code == 0, result.output
        [found] = json.loads(result.stdout)["methods"].values()
        return {"name": found.pop("method"), **found}

    for options in ([], ["--method", "visipruner"], ["--method", "visipruner:shallow_end=0"], ["--method", "fastv"]):
        assert ran(*options) == compared(*options)
    assert ran()["settings"] == OURS.settings()
    assert ran()["source"] == f"calibrated for {folder}"
    for command in (["run", str(image), "-q", "what ?"], ["eval", "--data", str(tmp_path / "data.jsonl")]):
        said = CliRunner().invoke(app, [*command, "--model", str(folder), "--method", ""])
        assert (said.exit_code, "name is empty" in said.stderr) == (1, True)
        shown = " ".join(CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "300"}).stdout.split())
        assert "A bare name has the settings that were calibrated for the model" in shown
