"""The report of an analysis: one HTML page that needs nothing else, and its first figure as a picture beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from visipruner.analysis.report import choosing, experiments, overview, style
from visipruner.analysis.report.beside_paper import paper
from visipruner.analysis.report.explorer import explorer_data
from visipruner.analysis.report.overview import headline_figure
from visipruner.analysis.report.words import Document, Section, notes
from visipruner.files import write_atomic

HEADLINE_FILE = "headline.png"
_Part = Callable[[Document], Section | None]  # None: what the section shows was not measured
_BEFORE: Sequence[_Part] = (overview.stages, overview.types)
_AFTER: Sequence[_Part] = (
    experiments.sweeps,
    experiments.shallow,
    experiments.sinks,
    experiments.stability,
    experiments.removal,
    choosing.scores,
    experiments.lens,
    experiments.tests,
    choosing.check,
    paper,
    choosing.cost,
    choosing.settings,
)
_ALWAYS = (
    "Everything here is about this model, these images and these questions; nothing is said about others.",
    "Knockouts show what a model can do without, one change at a time; two harmless changes together may do harm.",
    "Intervals are over images only: another run of the training, or other prompts, are not in them.",
)


def write_report(path: Path, document: dict[str, Any], records: Sequence[dict[str, Any]]) -> None:
    """Writes the page to `path`, and `headline.png` beside it where the sweeps were measured.

    The same input gives the same bytes. The page loads nothing, from nowhere.

    Args:
        document: what `analysis.json` holds. records: the samples' records, of which some are shown one by one.
    """
    page = render(document, records)
    write_atomic(path, lambda part: part.write_text(page, encoding="utf-8"))
    if "sweeps" in document:
        figure = headline_figure(document)
        with style.styled():
            write_atomic(
                path.parent / HEADLINE_FILE, lambda part: figure.savefig(part, dpi=160, metadata={"Software": None})
            )


def render(document: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """The page's HTML."""
    folder = PackageLoader("visipruner.analysis.report", "page")
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    with style.styled():
        before, after = ([section for part in parts if (section := part(document))] for parts in (_BEFORE, _AFTER))

    def asset(name: str) -> Markup:
        return Markup(folder.get_source(environment, name)[0])  # our own files

    return environment.get_template("report.html.jinja").render(
        document=document,
        facts=overview.facts(document),
        notes=notes(document),
        before=before,
        after=after,
        explorer=explorer_data(document, records),
        not_covered=[*_ALWAYS, *_not_covered(records)],
        svg=Markup,
        asset=asset,
    )


def _not_covered(records: Sequence[dict[str, Any]]) -> list[str]:
    """What the parts say about their own limits, each once."""
    results = [result for part in records[0]["parts"].values() for result in part.values()] if records else []
    told = [told for result in results if isinstance(result, dict) for told in result.get("not_covered", ())]
    return list(dict.fromkeys(told))
