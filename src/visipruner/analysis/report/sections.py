"""The sections of the page in their order. What was not measured has no section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from visipruner.analysis.report.choosing import check, paper, scores
from visipruner.analysis.report.colophon import cost, settings
from visipruner.analysis.report.content import Document, Section
from visipruner.analysis.report.interventions import removal, shallow, sweeps
from visipruner.analysis.report.observations import lens, sinks, stability, tests
from visipruner.analysis.report.overview import stages, types

_Part = Callable[[Document], Section | None]
_BEFORE: Sequence[_Part] = (stages, types)
_AFTER: Sequence[_Part] = (
    sweeps,
    shallow,
    sinks,
    stability,
    removal,
    scores,
    lens,
    tests,
    check,
    paper,
    cost,
    settings,
)


def sections(document: Document) -> tuple[list[Section], list[Section]]:
    """What stands before and after the explorer of single samples."""
    before, after = ([part(document) for part in parts] for parts in (_BEFORE, _AFTER))
    return [section for section in before if section], [section for section in after if section]
