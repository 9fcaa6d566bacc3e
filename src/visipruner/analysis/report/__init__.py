"""The report of an analysis: one HTML page that needs nothing else, and its first figure as a picture beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from visipruner.analysis.report import figures, style, tables, words
from visipruner.analysis.report.explorer import explorer_data
from visipruner.files import write_atomic

HEADLINE_FILE = "headline.png"
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
        figure = figures.headline_figure(document)
        with style.styled():
            write_atomic(
                path.parent / HEADLINE_FILE, lambda part: figure.savefig(part, dpi=160, metadata={"Software": None})
            )


def render(document: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    folder = PackageLoader("visipruner.analysis.report", "page")
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def asset(name: str) -> Markup:
        return Markup(folder.get_source(environment, name)[0])  # our own files

    def svg(figure: Figure, title: str) -> Markup:
        return Markup(style.to_svg(figure, title))

    with style.styled():
        return environment.get_template("report.html.jinja").render(
            document=document,
            words=words,
            figures=figures,
            tables=tables,
            contents=[],
            explorer=explorer_data(document, records),
            not_covered=[*_ALWAYS, *_not_covered(records)],
            svg=svg,
            asset=asset,
        )


def _not_covered(records: Sequence[dict[str, Any]]) -> list[str]:
    """What the parts say about their own limits, each once."""
    results = [result for part in records[0]["parts"].values() for result in part.values()] if records else []
    told = [told for result in results if isinstance(result, dict) for told in result.get("not_covered", ())]
    return list(dict.fromkeys(told))
