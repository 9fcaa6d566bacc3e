"""The package joins `visipruner` through its entry points: names, settings, samples, pictures, and a command."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import visipruner
from visipruner import VisiPruner
from visipruner.cli.app import app
from visipruner.evaluation.samples import load_samples
from visipruner.models import packaged
from visipruner.specs import adjusted, resolve
from visipruner_testbed import models
from visipruner_testbed.build import IMAGE_SIZE

PACKAGE = Path(__file__).parents[1]


def test_both_models_are_found_and_the_larger_is_the_default():
    assert packaged.default() == "testbed"
    assert (packaged.find("testbed"), packaged.find("testbed-224")) == (models.LARGE, models.SMALL)
    assert models.LARGE.load.keywords == {"image_size": IMAGE_SIZE}


def test_its_samples_and_pictures_are_taken_where_none_are_given():
    assert len(load_samples(packaged.data_of("testbed"))) > 2900
    assert packaged.picture("some/other").name == "cat.jpg"


def test_its_version_and_what_it_needs_are_those_of_the_library():
    versions = [
        tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in (PACKAGE, PACKAGE.parents[1])
    ]
    assert versions[0]["version"] == versions[1]["version"]
    major, minor, _ = versions[1]["version"].split(".")
    assert f"visipruner[cli]~={major}.{minor}.0" in versions[0]["dependencies"]


@pytest.mark.parametrize("command", ["build", "test"])
def test_help_shows_an_example(command):
    result = CliRunner().invoke(app, ["testbed", command, "--help"])
    assert result.exit_code == 0
    assert f"visipruner testbed {command}" in result.output


def test_a_missing_test_set_is_one_sentence(tmp_path):
    result = CliRunner().invoke(app, ["testbed", "test", "--folder", str(tmp_path / "nothing")])
    assert result.exit_code == 1
    assert "python -m research draw" in result.output
    assert "Traceback" not in result.output


def test_its_old_name_works_and_warns():
    with pytest.warns(DeprecationWarning, match="now the package visipruner_testbed"):
        assert visipruner.testbed.load is models.load


def test_both_sizes_of_the_small_model_have_its_own_settings_and_the_same_share_of_tokens():
    large, small = (resolve("visipruner", model, 30).pruner for model in ("testbed", "testbed-224"))
    assert large != VisiPruner()
    assert large.keep_tokens / 576 == pytest.approx(small.keep_tokens / 256, abs=1 / 256)
    assert adjusted("visipruner", {"keep_tokens": 9}, "testbed-224", 30).pruner.keep_tokens == 9
