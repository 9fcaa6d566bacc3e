"""The rows of a comparison as tables: one of everything, and one of the official scores where there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visipruner.evaluation.significance import LEVEL
from visipruner.tables import Table

_LEAST_TOLD = 0.0001  # a smaller p is not told apart
_COLUMNS = (
    "method",
    "accuracy (95 % CI)",
    f"against dense (95 % CI; n.s.: p, Holm > {LEVEL})",
    "p",
    "p, Holm",
    "same answer",
    "broken / repaired",
    "visual tokens per layer",
    "FLOPs cut (counted)",
    "prefill",
    "whole answer",
    "selection",
)


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
    tables = [Table(_COLUMNS, [_cells(row) for row in rows], notes)]
    if names := list(rows[0]["official"].get("scores", {})):
        scores = [[row["method"], *(f"{row['official']['scores'][name]:.2f}" for name in names)] for row in rows]
        tables.append(Table(["official score", *names], scores))
    return tables


def _cells(row: Mapping[str, Any]) -> list[str]:
    difference, selection = row["difference"], row["selection_share"]
    is_tested = difference is not None
    return [
        row["method"],
        _share(row["accuracy"]),
        f"{_points(difference)}{'' if row['is_significant'] else ' n.s.'}" if is_tested else "",
        _chance(row["p"]) if is_tested else "",
        _chance(row["p_holm"]) if is_tested else "",
        f"{100 * row['agreement']['value']:.1f} %",
        "" if row["broken"] is None else f"{row['broken']} / {row['repaired']}",
        f"{row['visual_tokens']:.0f}",
        f"{100 * row['flops_cut']:.1f} %",
        f"{row['prefill_ratio']:.2f}x",
        f"{row['answer_ratio']:.2f}x",
        "-" if selection is None else f"{100 * selection:.1f} %",
    ]


def _share(found: Mapping[str, Any] | None) -> str:
    return "not known" if found is None else f"{100 * found['value']:.1f} % ({_bounds(found, '.0f', '-')})"


def _points(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:+.1f} ({_bounds(found, '+.1f', ' to ')})"


def _bounds(found: Mapping[str, Any], form: str, between: str) -> str:
    if found["low"] is None:
        return "no interval"
    return between.join(format(100 * found[end], form) for end in ("low", "high"))


def _chance(p: float) -> str:
    return f"{p:.3g}" if p >= _LEAST_TOLD else f"<{_LEAST_TOLD:g}"
