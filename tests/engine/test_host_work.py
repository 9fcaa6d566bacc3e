"""What the engine adds to the host's work, counted: operations that become kernel launches, and reads that wait."""

from __future__ import annotations

import pytest

from visipruner.speed.host_work import BOUNDS, HostWork, count


@pytest.fixture(scope="module")
def counted() -> dict[str, HostWork]:
    return {row.method: row for row in count()}


@pytest.mark.parametrize("method", BOUNDS)
def test_the_engines_own_work_stays_small(counted: dict[str, HostWork], method: str) -> None:
    row, bound = counted[method], BOUNDS[method]
    assert row.prefill_ratio <= bound.prefill
    assert row.decode == counted["plain"].decode, "a token after the pruned prompt costs no operation more"
    assert row.reads <= bound.reads
    assert row.batch_ratio <= bound.batch


def test_every_method_counted_has_a_bound(counted: dict[str, HostWork]) -> None:
    assert counted.keys() - {"plain"} == BOUNDS.keys()
    assert counted["plain"].reads == 0
    assert counted["plain"].prefill > 2000
