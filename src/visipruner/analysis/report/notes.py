"""What a reader must know before the numbers, on the page and on the console."""

from __future__ import annotations

from visipruner.analysis.intervals import few_images
from visipruner.analysis.report.content import Document


def notes(document: Document) -> list[str]:
    """The stages' own notes, and where few images were analysed (stages say that too) or used for the check."""
    stages, rows = document.get("stages"), document.get("check")
    told = list(stages["notes"]) if stages else few_images(document["dense"]["images"], "analysed")
    if rows and "images" in rows[0]:  # an earlier version's check, which a later run keeps, does not say
        told += few_images(rows[0]["images"], "used for the check")
    return told
