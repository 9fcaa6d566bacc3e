"""The other commands, and what the command line must not cost."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from visipruner import adapters
from visipruner.models import packaged
from visipruner.pruners import registry

ROOT = Path(__file__).parents[2]


def test_list_names_methods_settings_and_families(cli):
    shown = cli("list").stdout
    for name in [*registry.available(), *adapters.supported(), "keep_tokens=none", "shallow_end=6"]:
        assert name in shown
    listed = json.loads(cli("list", "--json").stdout)
    assert set(listed["methods"]) == set(registry.available())
    assert listed["models"] == packaged.names()
    assert listed["families"] == adapters.supported()
    assert listed["methods"]["visipruner"]["settings"]["shallow_end"] == {"takes": "a whole number", "default": 6}


def test_version_is_the_packages(cli):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cli("--version").stdout.strip() == f"visipruner {version}"


@pytest.mark.parametrize("command", [[], ["run"], ["list"]])
def test_help_has_examples_or_commands(cli, command):
    result = cli(*command, "--help")
    assert result.exit_code == 0
    assert "Examples" in result.stdout or "Commands" in result.stdout


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_help_does_not_load_torch():
    """Help must be there at once; torch alone takes seconds."""
    loaded = _python(
        "import sys, visipruner.cli.app; print([n for n in ('torch', 'transformers', 'PIL') if n in sys.modules])"
    )
    assert loaded.strip() == "[]"


def test_the_library_needs_no_extra_and_the_command_says_which_it_needs():
    block = "import sys; sys.modules.update(typer=None, rich=None)\n"
    assert _python(block + "import visipruner; visipruner.attach; print('fine')").strip() == "fine"
    said = _python(block + "import visipruner.cli; visipruner.cli.main()").strip()
    assert said == "visipruner: the command line needs typer; install it with: pip install 'visipruner[cli]'"
