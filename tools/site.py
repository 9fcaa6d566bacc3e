"""Builds the documentation as a site: `make docs`, or `python -m tools.site out/site`.

The pages are those of docs/, as they read on GitHub; README.md is the first. Pages of methods are made of the methods'
files and of docs/comparison, those of the API of docstrings. A link that leads nowhere fails
the build.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools import method_pages
from visipruner.pruners.registry import available

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ALSO = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages from elsewhere in the repository, by the names that they have in the site."""
RENAMED = {"docs/README.md": "pages.md"}

API = {
    "attach": "Attach a method: engine.attach.attach engine.attach.PruneHandle engine.trace.PruneTrace "
    "accounting.record.ExampleTrace engine.image_cache.ImageCache errors",
    "ask": "Ask, compare, analyze, check: asking.run.ask evaluation.comparison.compare evaluation.runner.evaluate "
    "analysis.run.analyze checking chat",
    "contract": "Write a method: contract.pruner contract.budget contract.choosing contract.entry_view "
    "contract.layer_view contract.vision_view contract.routing contract.settings",
    "settings": "Methods by name, and on the hub: pruners.registry specs hub",
    "accounting": "Costs and savings: accounting accounting.exact accounting.paper accounting.kv",
    "models": "Models and families: models.loading models.packaged adapters adapters.base",
    "training": "Training: training.model training.entry training.planning",
}
"""Pages of docstrings: a title, and what is on them."""

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def write_sources(site: Path) -> None:
    """Everything that the site is built from, as Markdown and pictures, into the empty folder `site`."""
    pages = {path.relative_to(ROOT).as_posix(): path.name for path in sorted(DOCS.glob("*.md"))} | RENAMED | ALSO
    for source, name in pages.items():
        text = _moved((ROOT / source).read_text(encoding="utf-8"), ROOT / source, pages, site)
        (site / name).write_text(text, encoding="utf-8")
    method_pages.write(site / "methods")
    methods = site / "methods.md"
    methods.write_text(method_pages.linked(methods.read_text(encoding="utf-8")), encoding="utf-8")
    (site / "extra.css").write_text(".md-typeset td:first-child code { white-space: nowrap; }\n")
    (site / "api").mkdir()
    for name, listed in API.items():
        title, _, modules = listed.partition(": ")
        parts = [f"::: visipruner.{module}\n" for module in modules.split()]
        (site / "api" / f"{name}.md").write_text("\n".join([f"# {title}\n", *parts]), encoding="utf-8")


def _moved(text: str, source: Path, pages: dict[str, str], site: Path) -> str:
    """A page's text with its links made those of the site; files that it links to are copied there."""

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        file = (source.parent / path).resolve()
        if not file.exists():
            raise SystemExit(f"{source.relative_to(ROOT)} links to {target}, which is not there")
        inside = file.relative_to(ROOT).as_posix()
        if inside in pages:
            return f"{label}({pages[inside]}{hash_}{anchor})"
        if file.is_dir():  # nothing to show
            return label.removeprefix("[").removesuffix("]")
        # Text is shown by a browser, Markdown and source code as they are.
        name = f"files/{inside}" if file.suffix in {".png", ".json", ".jsonl"} else f"files/{inside}.txt"
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, site / name)
        return f"{label}({name})"

    parts = _FENCED.split(text)
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def config() -> str:
    """tools/site.yml with a line for every method."""
    lines = [f"      - {name}: methods/{name}.md" for name in available()]
    return (ROOT / "tools" / "site.yml").read_text(encoding="utf-8").replace(" METHODS", "\n" + "\n".join(lines))


def main() -> None:
    """Sources and their configuration in one folder, then the site beside them, in strict mode."""
    out = Path(sys.argv[1]).resolve()
    for folder in (out, out.with_name("site-sources")):
        shutil.rmtree(folder, ignore_errors=True)
    sources = out.with_name("site-sources")
    sources.mkdir(parents=True)
    write_sources(sources)
    file = out.with_name("site.yml")
    file.write_text(config(), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(file)]
    if subprocess.run(command, cwd=out.parent).returncode:
        raise SystemExit("The site has the issues above; pages lie in out/site-sources as they were made.")
    print(f"The site is in {os.path.relpath(out)}; look at it with: python -m http.server -d {os.path.relpath(out)}")


if __name__ == "__main__":
    main()
