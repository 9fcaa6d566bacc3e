"""What is not a number counts as the worst: no method breaks on it, or prefers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import visipruner as vp
from tests.engine.cases import METHODS
from tests.models import llava_inputs, llava_model
from visipruner.contract.choosing import top
from visipruner.pruners.cdpruner import greedy_map
from visipruner.pruners.divprune import most_diverse
from visipruner.pruners.vispruner import thinned

NAN = float("nan")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_picture_without_numbers(method: str) -> None:
    """The model answers, if with nonsense, and as many tokens stay as of any picture."""
    model, inputs = llava_model(), llava_inputs([[3, 0, 9]])
    kept = []
    for pixels in (inputs["pixel_values"], torch.full_like(inputs["pixel_values"], NAN)):
        with vp.attach(model, METHODS[method]) as handle, torch.no_grad():
            model(**{**inputs, "pixel_values": pixels})
        kept.append(handle.trace[0].kept)
    if METHODS[method].start().observes_entry(0) and method != "prumerge":  # keeps as many as stand out
        assert len(kept[0][0]) == len(kept[1][0])
    assert all(tokens == sorted(set(tokens)) for tokens in kept[1])


def test_the_worst_leave_first() -> None:
    assert top(torch.tensor([NAN, 3.0, NAN, 1.0]), 2).tolist() == [1, 3]
    assert top(torch.tensor([NAN, 3.0, NAN, 1.0]), 3).tolist() == [0, 1, 3]
    states = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    good = [0, 1, 2, 4, 5, 6, 7]
    broken = states.index_fill(0, torch.tensor([3, 8]), NAN)

    def alone_of(greedy: Any) -> Any:
        return lambda vectors, count: greedy([vectors], [count])[0]

    for choose in (alone_of(most_diverse), alone_of(greedy_map), thinned):
        alone = [good[place] for place in sorted(choose(states[good], 5).tolist())]
        if choose is not thinned:  # which pairs are compared goes by place
            assert sorted(choose(broken, 5).tolist()) == alone
        assert sorted(choose(broken, 7).tolist()) == good
        assert len(set(choose(broken, 8).tolist())) == 8
