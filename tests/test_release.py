"""What a release says of itself: one version, one floor, in every file that names them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import visipruner

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT / "pyproject.toml", ROOT / "packages" / "testbed" / "pyproject.toml"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def project(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(path.read_text())["project"]
    return found


def test_there_is_one_version() -> None:
    version = project(PACKAGES[0])["version"]
    assert version == project(PACKAGES[1])["version"] == visipruner.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"visipruner[cli]~={version}" in project(PACKAGES[1])["dependencies"]
    heading = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert heading == "Unreleased" or heading.startswith(version)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_the_floor_is_what_floor_test_installs(name: str) -> None:
    """And what is tested lies within what is claimed."""
    floors = dict(
        re.findall(r"(\w+)==([\d.]+)", re.search(r"^FLOOR \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)[1])
    )
    tested = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for path in PACKAGES:
        needed = {one.name: one.specifier for one in map(Requirement, project(path)["dependencies"])}
        lowest = next(one.version for one in needed[name] if one.operator == ">=")
        assert Version(floors[name]) == Version(lowest)
        assert tested[name] in needed[name]


@pytest.mark.parametrize("path", PACKAGES, ids=["visipruner", "testbed"])
def test_pythons_are_those_that_are_tried(path: Path) -> None:
    found = project(path)
    named = [one.rpartition(" ")[2] for one in found["classifiers"] if re.search(r"Python :: 3\.\d+$", one)]
    assert found["requires-python"] == f">={named[0]}"
    tried = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    assert set(named) <= set(tried["python"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    """GitHub never ran them; this holds their commands against the Makefile."""
    jobs = yaml.safe_load(path.read_text())["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = {found for step in steps for found in re.findall(r"make ([a-z-]+)", step)}
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    assert all(job["timeout-minutes"] for job in jobs.values())
