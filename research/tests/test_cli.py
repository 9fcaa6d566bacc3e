"""`python -m research ...`: every command has help with an example, and errors are one sentence."""

import pytest
from typer.testing import CliRunner

from research.cli import app
from visipruner_testbed.testset import load_test_set


@pytest.mark.parametrize("command", ["fetch", "draw", "draw-part", "train", "guidelines"])
def test_help_shows_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"python -m research {command}" in result.output


def test_draw_writes_a_test_set(emoji, tmp_path):
    arguments = ["draw", "--emoji", str(emoji), "--out", str(tmp_path / "new"), "--pictures", "2", "--unseen", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len({sample.image for sample in load_test_set(tmp_path / "new")}) == 5


def test_draw_part_writes_a_part(emoji, tmp_path):
    arguments = ["draw-part", "documents", "--emoji", str(emoji), "--out", str(tmp_path / "new"), "--pictures", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len({sample.image for sample in load_test_set(tmp_path / "new")}) == 2
    result = CliRunner().invoke(app, ["draw-part", "pages", *arguments[2:]])
    assert result.exit_code == 1
    assert "there are local, many, documents" in result.output.replace("\n", " ")


def test_missing_emoji_are_one_sentence(tmp_path):
    result = CliRunner().invoke(app, ["draw", "--emoji", str(tmp_path), "--out", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "python -m research fetch" in result.output
    assert "Traceback" not in result.output
