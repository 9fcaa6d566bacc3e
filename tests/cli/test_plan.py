"""How `visipruner plan` writes its numbers; what it computes is tested in tests/training/test_guidelines.py."""

from __future__ import annotations

import pytest

from visipruner.words import figures


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.01234, "0.0123"), (3.8249, "3.82"), (99.96, "100"), (999.4, "999"), (999.7, "1,000"), (12345.6, "12,300")],
)
def test_numbers_are_written_out(value: float, told: str) -> None:
    assert figures(value) == told
