"""Packing and its undoing."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from visipruner.engine.rows import Rows


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    seq = draw(st.integers(1, 12))
    batch = draw(st.integers(1, 4))
    index = [sorted(draw(st.sets(st.integers(0, seq - 1), min_size=1))) for _ in range(batch)]
    return Rows(tuple(torch.tensor(part) for part in index), seq)


@given(rows())
def test_gather_takes_the_rows_of_each_example_and_scatter_puts_them_back(picked: Rows) -> None:
    host = torch.randn(len(picked.index), picked.seq, 3)
    packed = picked.gather(host, -2)
    assert packed.shape == (1, sum(picked.lengths), 3)
    for example, span in enumerate(picked.spans):
        assert torch.equal(packed[0, span], host[example, picked.index[example]])
    back = picked.scatter(packed)
    kept = torch.zeros(host.shape[:2], dtype=torch.bool)
    for example, part in enumerate(picked.index):
        kept[example, part] = True
    assert torch.equal(back[kept], host[kept])
    assert not back[~kept].any()


@given(rows(), st.data())
def test_rows_within_rows(outer: Rows, data: st.DataObject) -> None:
    parts = [part[sorted(data.draw(st.sets(st.integers(0, len(part) - 1))))] for part in outer.index]
    inner = Rows(tuple(parts), outer.seq)
    host = torch.randn(len(outer.index), outer.seq, 2)
    once = inner.gather(host, -2)
    twice = outer.gather(host, -2).index_select(1, inner.within(outer))
    assert torch.equal(once, twice)


@given(rows())
def test_positions_of_three_dimensions_and_shared_ones(picked: Rows) -> None:
    batch = len(picked.index)
    mrope = torch.arange(3 * batch * picked.seq).view(3, batch, picked.seq)
    packed = picked.gather(mrope, -1)
    assert packed.shape == (3, 1, sum(picked.lengths))
    for example, span in enumerate(picked.spans):
        assert torch.equal(packed[:, 0, span], mrope[:, example, picked.index[example]])
    shared = torch.arange(picked.seq)[None]
    expected = torch.cat(picked.index) if not picked.is_whole else torch.arange(picked.seq)
    assert torch.equal(picked.gather(shared, -1)[0], expected)
