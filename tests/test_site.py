"""The pages of the documentation site, as they are made of docs/ and of the methods' files; `make docs` builds them."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest
import yaml

from tools import method_pages, site
from tools.method_pages import COMPARISON, page
from visipruner.pruners.registry import available, method_class

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    site.write_sources(folder)
    return folder


def test_links_lead_to_pages_and_files_of_the_site(sources: Path) -> None:
    dead = []
    for path in sources.rglob("*.md"):
        prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for link in LINK.findall(prose):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                dead.append(f"{path.name}: {link}")
    assert dead == []


def test_every_page_of_docs_and_every_method_is_in_the_navigation(sources: Path) -> None:
    class Loader(yaml.SafeLoader):
        """Reads the navigation alone."""

    text = site.config()
    nav = yaml.load(text[text.index("nav:") :], Loader)["nav"]
    named = set(re.findall(r"'([\w/-]+\.md)", str(nav)))
    assert {f"methods/{name}.md" for name in available()} <= named
    assert named == {path.relative_to(sources).as_posix() for path in sources.rglob("*.md")}


@pytest.mark.parametrize("name", sorted(available()))
def test_a_methods_page_says_what_its_file_says(name: str, tmp_path: Path) -> None:
    cls = method_class(name)
    text = page(cls, tmp_path)
    for heading in ("## Formula", "## Settings", "## Cost", "## Measured"):
        assert heading in text
    assert f"class {cls.__name__}(" in text
    assert all(f"| `{setting}` |" in text for setting in map(attrgetter("name"), fields(cls)))
    arxiv = re.search(r"arXiv (\S+)", cls.about.paper)
    assert not arxiv or f"](https://arxiv.org/abs/{arxiv[1]})" in text


def test_a_methods_numbers_are_the_comparisons(tmp_path: Path) -> None:
    rows = {row["method"]: row for row in json.loads((COMPARISON / "results.json").read_text())["rows"]}
    text = page(method_class("fastv"), tmp_path)
    found = rows["fastv @ 85%"]
    [line] = [line for line in text.splitlines() if line.startswith("| `fastv @ 85%`")]
    assert f"{found['flops_cut']:.1%}" in line
    assert f"{100 * found['difference']['value']:+.1f}" in line
    layers = method_pages.measured("fastv")["fastv @ 85%"]["layers"]
    assert sum(layers) == pytest.approx(found["visual_tokens"] * len(layers), rel=0.01)
    assert (tmp_path / "fastv.svg").read_text().count("<title>layer ") == len(layers)
