"""Finding visual rows, images and grids."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visipruner.errors import LayoutError
from visipruner.layout import VisualRows, layouts, mask_for_forward

Flags = st.lists(st.booleans(), min_size=1, max_size=40)


@given(flags=Flags, padding=st.integers(0, 5), left=st.booleans())
def test_tokens_are_split_into_runs_and_padding_is_no_row(flags: list[bool], padding: int, left: bool) -> None:
    pad = (padding, 0) if left else (0, padding)
    mask = torch.nn.functional.pad(torch.tensor([flags]), pad)
    real = torch.nn.functional.pad(torch.ones(1, len(flags), dtype=torch.bool), pad)
    (layout,) = layouts(VisualRows(mask), real)
    shift = padding if left else 0
    assert layout.real.tolist() == list(range(shift, shift + len(flags)))
    assert layout.visual.tolist() == [shift + i for i, flag in enumerate(flags) if flag]
    runs = [len(run) for run in "".join("v" if flag else " " for flag in flags).split()]
    assert layout.tokens_per_image == runs
    assert len(layout.grids) == len(runs)


@pytest.mark.parametrize(
    ("visual", "grid", "sizes", "grids"),
    [
        ([0] * 2 + [1] * 16 + [0], None, [16], [(4, 4)]),
        ([1] * 15, None, [15], [None]),
        ([1] * 24, (3, 4), [12, 12], [(3, 4), (3, 4)]),  # adjacent images are one run
        ([1] * 25, (3, 4), [25], [(5, 5)]),  # the grid does not fit: not taken on trust
    ],
)
def test_grids(visual: list[int], grid: tuple[int, int] | None, sizes: list[int], grids: list[object]) -> None:
    mask = torch.tensor([visual]).bool()
    (layout,) = layouts(VisualRows(mask, grid), torch.ones_like(mask))
    assert layout.tokens_per_image == sizes
    assert layout.grids == grids


@given(flags=Flags, past=st.integers(0, 50), seq=st.integers(1, 50), repeats=st.integers(1, 3))
def test_a_prompts_mask_cut_to_a_forward(flags: list[bool], past: int, seq: int, repeats: int) -> None:
    mask = torch.tensor([flags])
    if past == 0 and seq < len(flags):
        with pytest.raises(LayoutError, match=f"covers {len(flags)} rows"):
            mask_for_forward(mask, repeats, past, seq, cached=False)
        return
    part = mask_for_forward(mask, repeats, past, seq, cached=False)
    assert part.shape == (repeats, seq)
    endless = flags + [False] * 200
    assert part[-1].tolist() == endless[past : past + seq]
