"""The report of an analysis: one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_report(path: Path, document: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Writes the page."""
