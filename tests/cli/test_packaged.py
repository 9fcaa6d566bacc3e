"""Models and commands of other packages: found by entry point, named where broken, and not needed."""

import json
import sys

import pytest
import typer
from typer.testing import CliRunner

import visipruner
from tests.cli.tiny_llava import save_llava
from visipruner import plugins
from visipruner.cli.app import mount
from visipruner.models import packaged

PACKAGE = """
import json
from pathlib import Path
import typer
from transformers import AutoModelForImageTextToText, AutoProcessor
from visipruner import VisiPruner
from visipruner.models.packaged import PackagedModel

HERE = Path(__file__).parent

def load(dtype, attn):
    model = AutoModelForImageTextToText.from_pretrained(HERE / "weights", dtype=dtype, attn_implementation=attn)
    return model, AutoProcessor.from_pretrained(HERE / "weights")

MODEL = PackagedModel(
    load,
    prepare=(HERE / "prepared").touch,
    calibrated=lambda: VisiPruner(shallow_end=0, filter_layer=0, keep_tokens=2),
    questions=HERE / "questions.jsonl",
    pictures=(HERE / "photo.png",),
)
COMMAND = typer.Typer()

@COMMAND.command()
def say(word: str):
    print(f"said {word}")
"""


@pytest.fixture
def none_installed(monkeypatch):
    """As where nothing but visipruner is installed."""
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())


@pytest.fixture
def installed(tmp_path, photo, monkeypatch):
    """A package `other` with a model of that name, a broken one, and a command."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[visipruner.models]\nother = other_package:MODEL\nother-broken = other_package:HERE\n\n"
        "[visipruner.commands]\nother = other_package:COMMAND\n"
    )
    (tmp_path / "other_package.py").write_text(PACKAGE)
    save_llava(tmp_path / "weights")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("other_package", None)


@pytest.mark.parametrize("command", [["run", "{photo}", "-q", "what ?"], ["eval"], ["analyze", "--out", "{out}"]])
def test_without_any_model_one_sentence_says_what_to_do(fails, none_installed, photo, tmp_path, command):
    sentence = fails(*(part.format(photo=photo, out=tmp_path / "out") for part in command))
    assert "Name a model with --model, a folder or a hub id" in sentence
    assert "pip install visipruner-testbed" in sentence


def test_a_model_that_is_not_installed_is_told_how_to_be(fails, none_installed, photo):
    sentence = fails("run", photo, "-q", "what ?", "--model", "testbed")
    assert "There is no model 'testbed'" in sentence
    assert "pip install visipruner-testbed" in sentence


def test_without_any_model_there_are_no_samples_and_no_picture(fails, cli, none_installed, llava_folder):
    assert "--data FILE.jsonl" in fails("eval", "--model", llava_folder)
    assert "--image FILE" in cli("bench", "--model", llava_folder).stderr  # a busy machine is told of before


def test_the_old_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "visipruner_testbed", None)
    with pytest.raises(ImportError, match="pip install visipruner-testbed"):
        visipruner.testbed  # noqa: B018


def test_a_packaged_model_runs_with_its_own_settings(cli, installed, photo):
    result = cli("run", photo, "-q", "what is this ?", "--model", "other", "--max-new-tokens", 1, "--json")
    assert result.exit_code == 0, result.output
    method = json.loads(result.stdout)["method"]
    assert (method["name"], method["settings"]["keep_tokens"]) == ("visipruner", 2)
    assert (installed / "prepared").exists()
    assert packaged.picture("other") == installed / "photo.png"


def test_a_name_that_is_nearly_one_and_a_broken_package(fails, installed, photo):
    assert "Did you mean 'other'" in fails("run", photo, "-q", "what ?", "--model", "othr")
    broken = fails("run", photo, "-q", "what ?", "--model", "other-broken")
    assert "must be a visipruner.models.packaged.PackagedModel" in broken


def test_commands_of_a_package_are_joined(installed):
    app = typer.Typer()
    app.command()(lambda: None)
    mount(app)
    assert "Commands of the package other." in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, ["other", "hello"]).stdout == "said hello\n"
