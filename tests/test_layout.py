"""Finding visual rows, images and grids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from visipruner.contract.layout import ImageTokens, VisualRows, layouts, mask_for_forward
from visipruner.errors import LayoutError

Flags = st.lists(st.booleans(), min_size=1, max_size=40)


@given(flags=Flags, padding=st.integers(0, 5), left=st.booleans())
def test_tokens_are_split_into_runs_and_padding_is_no_row(flags: list[bool], padding: int, left: bool) -> None:
    pad = (padding, 0) if left else (0, padding)
    mask = torch.nn.functional.pad(torch.tensor([flags]), pad)
    real = torch.nn.functional.pad(torch.ones(1, len(flags), dtype=torch.bool), pad)
    (layout,) = layouts(VisualRows(mask), real)
    shift = padding if left else 0
    assert layout.real.tolist() == list(range(shift, shift + len(flags)))
    flags = [*flags[:-1], False]  # the next token is read from the last row: never a visual token
    assert layout.visual.tolist() == [shift + i for i, flag in enumerate(flags) if flag]
    runs = [len(run) for run in "".join("v" if flag else " " for flag in flags).split()]
    assert layout.tokens_per_image == runs
    assert len(layout.grids) == len(runs)


@pytest.mark.parametrize(
    ("visual", "images", "expected"),
    [
        ([0] * 2 + [1] * 16 + [0], None, [(16, (4, 4))]),
        ([1] * 15 + [0], None, [(15, None)]),
        ([1] * 24 + [0], [(12, (3, 4))] * 2, [(12, (3, 4))] * 2),  # adjacent images are one run
        ([1] * 6 + [0] + [1] * 6 + [0], [(12, (2, 6))], [(12, (2, 6))]),  # one image, broken by separators
        ([1] * 25 + [0], [(12, (3, 4))], [(25, (5, 5))]),  # sizes that do not fit are not taken on trust
        ([1] * 12, [(12, (3, 4))], [(11, None)]),  # the last row must stay: it is no visual token
        ([0, 1], [(1, (1, 1))], []),
    ],
)
def test_images(visual: list[int], images: list[Any] | None, expected: list[Any]) -> None:
    mask = torch.tensor([visual]).bool()
    given_images = None if images is None else [ImageTokens(*image) for image in images]
    (layout,) = layouts(VisualRows(mask, given_images), torch.ones_like(mask))
    assert list(zip(layout.tokens_per_image, layout.grids, strict=True)) == expected
    assert layout.visual.numel() == sum(layout.tokens_per_image) == sum(visual) - len(layout.spared)


def test_the_last_row_of_an_image_before_a_learnt_word_is_no_visual_token() -> None:
    """Not that before a row of the image, nor one whose next word is not learnt."""
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 1, 0, 0]]).bool()
    images = [ImageTokens(2, (1, 2)), ImageTokens(2, (1, 2)), ImageTokens(2, (2, 1))]
    learnt = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0, 0, 1]]).bool()
    (layout,) = layouts(VisualRows(mask, images), torch.ones_like(mask), learnt=learnt)
    assert layout.visual.tolist() == [1, 2, 3, 6, 7]
    assert (layout.tokens_per_image, layout.grids) == ([2, 1, 2], [(1, 2), None, (2, 1)])
    assert layout.spared == (3,)


def test_images_go_to_the_examples_that_hold_them() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]).bool()
    images = [ImageTokens(1), ImageTokens(2, (1, 2)), ImageTokens(3, (3, 1))]
    found = layouts(VisualRows(mask, images), torch.ones_like(mask))
    assert [layout.tokens_per_image for layout in found] == [[1, 2], [], [3]]
    assert found[2].grids == [(3, 1)]


def test_images_of_masked_rows_are_not_given_to_the_next_example() -> None:
    mask = torch.tensor([[1] * 12 + [0]] * 3).bool()
    real = torch.ones_like(mask)
    real[0], real[1, :6] = False, False
    images = [ImageTokens(12, grid) for grid in ((3, 4), (4, 3), (2, 6))]
    found = layouts(VisualRows(mask, images), real)
    assert [layout.grids for layout in found] == [[], [None], [(2, 6)]]


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
