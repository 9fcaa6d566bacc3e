"""A measured point as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visipruner.tables import Table

_COLUMNS = (
    "",
    "prefill, s",
    "faster than dense",
    "FLOPs promise",
    "of the promise",
    "x text only",
    "decode, ms",
    "faster",
    "all tokens, s",
    "selection",
    "bookkeeping",
    "peak memory",
    "KV cache",
)


def as_table(point: Mapping[str, Any]) -> Table:
    """One line a contender. Seconds are medians with (lowest to highest); ratios are to dense."""
    return Table(_COLUMNS, [_cells(row) for row in point["rows"]])


def as_markdown(point: Mapping[str, Any]) -> str:
    """The same as people paste it."""
    return as_table(point).markdown(numbers_right=True)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["name"],
        _seconds(row["prefill"]),
        _times(row["speedup"]),
        _plain(row["flops_ratio"], "{:.2f}x"),
        _plain(row["of_limit"], "{:.2f}"),
        _plain((row["times_text_only"] or {}).get("median"), "{:.2f}"),
        _seconds(row["decode"], 1000, 1),
        _times(row["decode_speedup"]),
        _seconds(row["total"]),
        _plain(row["selection_share"], "{:.2%}"),
        _plain(row["bookkeeping_share"], "{:.2%}"),
        _plain((row["peak_bytes"] or {}).get("median"), "{:.0f} MB", 1e-6),
        _plain(row["kv_bytes"], "{:.0f} MB", 1e-6),
    ]


def _seconds(value: Mapping[str, float] | None, factor: float = 1, digits: int = 2) -> str:
    if value is None:
        return "-"
    median, low, high = (factor * value[key] for key in ("median", "low", "high"))
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _times(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:.2f}x ({value['low']:.2f}-{value['high']:.2f})"


def _plain(value: float | None, pattern: str, factor: float = 1) -> str:
    return "-" if value is None else pattern.format(value * factor)
