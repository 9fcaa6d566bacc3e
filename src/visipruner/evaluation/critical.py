"""Which visual tokens hold a question's answer, and how many of them are left in each layer."""

from __future__ import annotations

from collections.abc import Sequence

from visipruner.accounting.record import ExampleTrace
from visipruner.evaluation.samples import Box, Sample

_COVERED = 0.25


def covered(boxes: Sequence[Box], rows: int, columns: int) -> tuple[int, ...]:
    """The cells of a `rows` x `columns` grid, numbered line by line, that hold what lies in `boxes`.

    A cell counts where one box covers a quarter of it or more; besides, each box has the cell it covers most of, the
    first of several. `boxes` are left, top, right and bottom in fractions of the picture's width and height.
    """
    found: set[int] = set()
    for left, top, right, bottom in boxes:
        across = [max(0.0, min(right * columns, at + 1) - max(left * columns, at)) for at in range(columns)]
        down = [max(0.0, min(bottom * rows, at + 1) - max(top * rows, at)) for at in range(rows)]
        shares = [high * wide for high in down for wide in across]
        found.add(shares.index(max(shares)))
        found |= {cell for cell, share in enumerate(shares) if share >= _COVERED}
    return tuple(sorted(found))


def critical_tokens(sample: Sample, traced: ExampleTrace) -> tuple[int, ...]:
    """Of the prompt's visual tokens those that hold the answer: of the sample's boxes on the image's grid, where both
    are known, else its `where`; empty where it has neither, or `where` is of another number of tokens."""
    if sample.boxes and len(traced.grids) == 1 and traced.grids[0] is not None:
        return covered(sample.boxes, *traced.grids[0])
    is_whole = traced.unseen_visual == 0 and max(sample.where, default=0) < traced.num_visual
    return sample.where if is_whole else ()


def share_left(critical: Sequence[int], traced: ExampleTrace) -> list[float]:
    """By layer the share of the critical tokens that enter it; a merged token counts as the one whose place it has."""
    return [len(set(critical) & set(kept)) / len(critical) for kept in traced.kept[:-1]]
