"""examples/space: what it asks for exists, and it starts as a Space does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import urllib.request
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
    floor = next(line for line in extras["visipruner"]["app"] if line.startswith("gradio")).partition(">=")[2]
    assert int(fields["sdk_version"].split(".")[0]) == int(floor)


@pytest.mark.browser
def test_it_starts_as_a_space_does(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "MODEL": str(save_llava(tmp_path)),
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": "7871",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(SPACE / "app.py")], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "7871" in line)
        assert line.strip() == "http://0.0.0.0:7871/"
        assert b"<title>" in urllib.request.urlopen("http://127.0.0.1:7871/").read()
    finally:
        process.terminate()
        process.wait(timeout=30)
