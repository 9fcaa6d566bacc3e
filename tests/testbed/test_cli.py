"""`visipruner testbed ...`: every command has help with an example, and errors are one sentence."""

import pytest
from typer.testing import CliRunner

from visipruner.testbed.cli import app
from visipruner.testbed.testset import load_test_set


@pytest.mark.parametrize("command", ["build", "test", "fetch", "draw", "train"])
def test_help_shows_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "visipruner testbed" in result.output


def test_draw_writes_a_test_set(emoji, tmp_path):
    arguments = ["draw", "--emoji", str(emoji), "--out", str(tmp_path / "new"), "--pictures", "2", "--unseen", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert len({sample.image for sample in load_test_set(tmp_path / "new")}) == 5


def test_missing_emoji_and_missing_test_set_are_one_sentence(tmp_path):
    drawn = CliRunner().invoke(app, ["draw", "--emoji", str(tmp_path), "--out", str(tmp_path / "new")])
    tested = CliRunner().invoke(app, ["test", "--folder", str(tmp_path / "nothing")])
    for result, hint in ((drawn, "visipruner testbed fetch"), (tested, "visipruner testbed draw")):
        assert result.exit_code == 1
        assert hint in result.output
        assert "Traceback" not in result.output
