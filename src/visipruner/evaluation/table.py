"""The rows of a comparison as tables: one of everything, and one of the official scores where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from visipruner.evaluation.certainty import LEVEL
from visipruner.tables import Table

_LEAST_TOLD = 0.0001  # a smaller p is not told apart
Row = Mapping[str, Any]


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Both tables as people paste them. What p and "n.s." mean stands below the first."""
    return "\n\n".join(table.markdown() for table in as_tables(rows))


def as_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Of rows as `summarize` makes them."""
    notes = []
    if tested := sum(row["p"] is not None for row in rows):
        notes.append(
            "p: two-sided sign-flip test of the paired difference over images; p, Holm: adjusted for the rows tested "
            f"here, {tested}. n.s.: no significant difference, p, Holm is above {LEVEL}. Each interval is of its row "
            "alone, and not exact where few answers change; none is given where images do not vary."
        )
    columns = dict(_COLUMNS)
    if any(row.get("critical_left") for row in rows):
        columns |= _CRITICAL
        notes.append(
            "critical tokens: those that hold the answer, in the mean over the questions of which this is known."
        )
    tables = [Table.of(columns, rows, notes)]
    if names := list(rows[0]["official"].get("scores", {})):
        scores = [[row["method"], *(f"{row['official']['scores'][name]:.2f}" for name in names)] for row in rows]
        tables.append(Table(["official score", *names], scores))
    return tables


def _share(found: Row | None) -> str:
    return "not known" if found is None else f"{100 * found['value']:.1f} % ({_bounds(found, '.0f', '-')})"


def _points(found: Row | None, is_significant: bool | None) -> str:
    if found is None:
        return ""
    return f"{100 * found['value']:+.1f} ({_bounds(found, '+.1f', ' to ')}){'' if is_significant else ' n.s.'}"


def _bounds(found: Row, form: str, between: str) -> str:
    if found["low"] is None:
        return "no interval"
    return between.join(format(100 * found[end], form) for end in ("low", "high"))


def _chance(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.3g}" if p >= _LEAST_TOLD else f"<{_LEAST_TOLD:g}"


_COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda row: str(row["method"]),
    "accuracy (95 % CI)": lambda row: _share(row["accuracy"]),
    f"against dense (95 % CI; n.s.: p, Holm > {LEVEL})": lambda row: _points(row["difference"], row["is_significant"]),
    "p": lambda row: _chance(row["p"]),
    "p, Holm": lambda row: _chance(row["p_holm"]),
    "same answer": lambda row: f"{100 * row['agreement']['value']:.1f} %",
    "broken / repaired": lambda row: "" if row["broken"] is None else f"{row['broken']} / {row['repaired']}",
    "visual tokens per layer": lambda row: f"{row['visual_tokens']:.0f}",
    "FLOPs cut (counted)": lambda row: f"{100 * row['flops_cut']:.1f} %",
    "prefill": lambda row: f"{row['prefill_ratio']:.2f}x",
    "whole answer": lambda row: f"{row['answer_ratio']:.2f}x",
    "selection": lambda row: "-" if row["selection_share"] is None else f"{100 * row['selection_share']:.1f} %",
}


def _critical(row: Row) -> str:
    shares = row.get("critical_left")
    if not shares:
        return ""
    return " / ".join(f"{100 * shares[len(shares) * quarter // 4]:.0f}" for quarter in (1, 2, 3)) + " %"


_CRITICAL: dict[str, Callable[[Row], str]] = {"critical tokens left after 1/4, 1/2, 3/4 of the layers": _critical}
