"""examples/space: what it asks for exists, and it starts as a Space does; so does the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.tiny_llava import save_llava

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"


def test_what_it_asks_for_exists() -> None:
    extras = {
        found["project"]["name"]: found["project"]["optional-dependencies"]
        for found in (
            tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, ROOT / "packages/testbed")
        )
    }
    for line in (SPACE / "requirements.txt").read_text().splitlines():
        name, extra = re.fullmatch(r"([\w-]+)\[(\w+)\]", line).groups()  # type: ignore[union-attr]
        assert extra in extras[name]
    header = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    fields = dict(line.split(": ", 1) for line in header.strip().splitlines())
    assert (SPACE / fields["app_file"]).is_file()
    assert fields["sdk"] == "gradio"
    floor = re.search(r"gradio>=([\d.]+)", " ".join(extras["visipruner"]["app"]))
    assert floor is not None
    assert fields["sdk_version"].startswith(floor[1])


@contextmanager
def _serving(arguments: list[str], port: int, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the page, and the line in which it says where."""
    known = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1", **environment}
    process = subprocess.Popen([sys.executable, *arguments], env=known, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if str(port) in line).strip()
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").status == 200
        yield process, line
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.browser
def test_it_starts_as_a_space_does(tmp_path: Path) -> None:
    where = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": "7871"}
    with _serving([str(SPACE / "app.py")], 7871, MODEL=str(save_llava(tmp_path)), **where) as (_, line):
        assert line == "http://localhost:7871/"  # what Gradio calls 0.0.0.0


@pytest.mark.browser
def test_the_command_serves_this_machine_alone_until_it_is_interrupted(tmp_path: Path) -> None:
    arguments = ["-m", "visipruner", "app", "--model", str(save_llava(tmp_path)), "--port", "7872"]
    with _serving(arguments, 7872) as (process, line):
        assert line == "Open http://127.0.0.1:7872/ in a browser; Ctrl-C ends it."
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
