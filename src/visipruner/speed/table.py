"""A measured point as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from visipruner.tables import Table

Row = Mapping[str, Any]


def as_table(point: Mapping[str, Any]) -> Table:
    """One line a contender. Seconds are medians with (lowest to highest); ratios are to dense."""
    of_a_gpu = _OF_A_GPU if any(row.get("waits") is not None for row in point["rows"]) else {}
    return Table.of({**_COLUMNS, **of_a_gpu}, point["rows"])


def as_markdown(point: Mapping[str, Any]) -> str:
    """The same as people paste it."""
    return as_table(point).markdown(numbers_right=True)


def _seconds(value: Mapping[str, float] | None, factor: float = 1, digits: int = 2) -> str:
    if value is None:
        return "-"
    median, low, high = (factor * value[key] for key in ("median", "low", "high"))
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _times(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:.2f}x ({value['low']:.2f}-{value['high']:.2f})"


def _plain(value: float | Mapping[str, float] | None, pattern: str, factor: float = 1) -> str:
    """Of several values the median."""
    known = value["median"] if isinstance(value, Mapping) else value
    return "-" if known is None else pattern.format(known * factor)


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: str(row["name"]),
    "prefill, s": lambda row: _seconds(row["prefill"]),
    "faster than dense": lambda row: _times(row["speedup"]),
    "FLOPs promise": lambda row: _plain(row["flops_ratio"], "{:.2f}x"),
    "of the promise": lambda row: _plain(row["of_limit"], "{:.2f}"),
    "x text only": lambda row: _plain(row["times_text_only"], "{:.2f}"),
    "decode, ms": lambda row: _seconds(row["decode"], 1000, 1),
    "faster": lambda row: _times(row["decode_speedup"]),
    "all tokens, s": lambda row: _seconds(row["total"]),
    "selection": lambda row: _plain(row["selection_share"], "{:.2%}"),
    "bookkeeping": lambda row: _plain(row["bookkeeping_share"], "{:.2%}"),
    "peak memory": lambda row: _plain(row["peak_bytes"], "{:.0f} MB", 1e-6),
    "KV cache": lambda row: _plain(row["kv_bytes"], "{:.0f} MB", 1e-6),
}
_OF_A_GPU: dict[str, Callable[[Row], str]] = {
    "waits": lambda row: _plain(row["waits"], "{:.0f}"),
    "GPU idle": lambda row: _plain(row["idle_share"], "{:.0%}"),
}
