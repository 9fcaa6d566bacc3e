"""A tiny model on disk, a picture, and the command line to try them with."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from tests.cli.tiny_llava import save_llava, save_text_model
from visipruner.cli.app import app


@pytest.fixture(autouse=True)
def _plain_output(monkeypatch):
    """Whatever the tester's shell says, errors come as sentences and lines are wide."""
    monkeypatch.delenv("VISIPRUNER_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory) -> Path:
    return save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def photo(tmp_path) -> Path:
    picture = Image.new("RGB", (120, 80), "navy")
    ImageDraw.Draw(picture).ellipse((40, 20, 80, 60), fill="orange")
    path = tmp_path / "photo.png"
    picture.save(path)
    return path


@pytest.fixture
def cli():
    """`cli("run", ...)` in this process; the result has exit_code, stdout and stderr."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def fails(cli):
    """`fails(...)` runs, expects one sentence on stderr and nothing like a traceback, and returns the sentence."""

    def invoke(*arguments: object, code: int = 1) -> str:
        result = cli(*arguments)
        lines = result.stderr.strip().splitlines()
        assert result.exit_code == code, result.output
        assert len(lines) == 1, lines
        assert lines[0].startswith("visipruner: ")
        assert "Traceback" not in result.output
        assert "Unexpected" not in lines[0]
        assert not result.stdout
        return lines[0]

    return invoke
