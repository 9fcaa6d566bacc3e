"""One full page, rendered once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report import cases
from visipruner.analysis.report import write_report


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds report.html with all parts, and what lies beside it."""
    made = tmp_path_factory.mktemp("report")
    found = cases.records(made)
    write_report(made / "report.html", cases.document(found), found)
    return made
