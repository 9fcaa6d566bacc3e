"""The head is given rows of its own: the same logits, whatever the slice they come from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models import llava_inputs, llava_model
from visipruner.models.heads import give_whole_rows


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_logits_stay_and_rows_are_whole(keep: int) -> None:
    model = llava_model("clip", "llama")
    inputs = llava_inputs([[5, 0, 4], [3, 0, 2]])
    given = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: given.append(args[0]))
    with torch.no_grad():
        before = model(**inputs, logits_to_keep=keep).logits
        with give_whole_rows(model):
            during = model(**inputs, logits_to_keep=keep).logits
        after = model(**inputs, logits_to_keep=keep).logits
    torch.testing.assert_close(during, before, atol=1e-6, rtol=1e-5)
    assert torch.equal(after, before)
    sliced, whole, again = given
    assert torch.equal(sliced, whole)
    assert whole.stride(0) == whole.shape[1] * whole.stride(1)
    assert again.stride() == sliced.stride()
    if keep:
        assert sliced.stride(0) != sliced.shape[1] * sliced.stride(1), "the case must have a slice to test anything"


def test_rows_that_are_whole_are_not_copied() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Identity()

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model, rows = Model(), torch.ones(2, 3, 4)
    give_whole_rows(model)
    assert model.head(rows) is rows
    assert model.head(rows[:, -1:]) is not rows
    assert model.head(rows[0]).data_ptr() == rows.data_ptr()
