"""A caller's own 4-D mask: what it closes stays closed and what it adds is added once rows are packed, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import visipruner as vp
from tests.engine.cases import PRUNERS
from tests.models import prompt, text_model
from tests.oracle import oracle, pruned_edit
from visipruner.errors import UnsupportedModelError

# Methods that pack rows from the start, in the middle, and that read the map of every row.
PACKING = ("schedule", "budget", "ffn")


def causal(length: int, closed: float) -> Tensor:
    return torch.full((1, 1, length, length), closed).triu(1)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PACKING)
@pytest.mark.parametrize("closed", [float("-inf"), -1e9, -65504.0, -1e4])
def test_any_way_to_close_an_edge_closes_it(closed: float, pruner: str, attn: str) -> None:
    model = text_model("llama", attn)
    embeds, visual = prompt()
    with vp.attach(model, PRUNERS[pruner], visual) as handle, torch.no_grad():
        expected = model(inputs_embeds=embeds).logits
        kept = handle.trace.kept
        logits = model(inputs_embeds=embeds, attention_mask=causal(embeds.shape[1], closed)).logits
        assert handle.trace.kept == kept
    torch.testing.assert_close(logits[~visual], expected[~visual], atol=2e-5, rtol=1e-4)


def test_a_later_row_changes_no_earlier_one() -> None:
    model = text_model("llama")
    embeds, visual = prompt()
    other = embeds.clone()
    other[:, -1] = embeds[:, 0]
    mask = causal(embeds.shape[1], -1e9)
    with vp.attach(model, PRUNERS["schedule"], visual), torch.no_grad():
        first, second = (model(inputs_embeds=part, attention_mask=mask).logits for part in (embeds, other))
    assert torch.equal(first[:, :5], second[:, :5])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", ["schedule", "budget", "ffn"])
def test_what_a_mask_adds_is_added(pruner: str, attn: str) -> None:
    """Against the full-length model under the same mask with the edges to dropped rows cut."""
    model = text_model("llama", attn)
    embeds, visual = prompt()
    length = embeds.shape[1]
    added = torch.randn(1, 1, length, length, generator=torch.Generator().manual_seed(3))
    mask = causal(length, torch.finfo(torch.float32).min) + added.tril()
    with vp.attach(model, PRUNERS[pruner], visual) as handle, torch.no_grad():
        plain = model(inputs_embeds=embeds).logits
        logits = model(inputs_embeds=embeds, attention_mask=mask).logits
    trace = handle.trace[0]
    assert len(trace.kept[-1]) < trace.num_visual
    edit = pruned_edit(visual[0], trace.kept, PRUNERS[pruner])

    def biased(layer: int, given: Tensor) -> Tensor:
        return edit(layer, given + added[0])

    with oracle(model, biased), torch.no_grad():
        expected = model(inputs_embeds=embeds, use_cache=False).logits
    rows = ~visual
    torch.testing.assert_close(logits[rows], expected[rows], atol=5e-5, rtol=1e-4)
    assert not torch.allclose(logits[rows], plain[rows], atol=1e-2)


@pytest.mark.parametrize("method", [vp.FastV(layer=2, keep_ratio=0.25), PRUNERS["budget"]])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_tokens_are_chosen_by_what_a_mask_adds(method: vp.Pruner, attn: str) -> None:
    """Some tokens are told to everyone so loudly that they must stay, and the others cannot be heard."""
    model = text_model("llama", attn)
    embeds, visual = prompt()
    length, places = embeds.shape[1], visual[0].nonzero().flatten()
    mask = causal(length, torch.finfo(torch.float32).min)
    loud = places[[1, 6, 11, 14]]
    mask[..., places] = torch.where(mask[..., places] == 0, -30.0, mask[..., places])
    mask[..., loud] = torch.where(mask[..., loud] == -30.0, 0.0, mask[..., loud])
    with vp.attach(model, method, visual) as handle, torch.no_grad():
        model(inputs_embeds=embeds, attention_mask=mask)
    chosen = next(kept for kept in handle.trace[0].kept if len(kept) < 16)
    assert chosen == [1, 6, 11, 14]


def test_a_mask_for_each_head_is_refused() -> None:
    model: Any = text_model("llama")
    embeds, visual = prompt()
    mask = causal(embeds.shape[1], -1e9).repeat(1, 4, 1, 1)
    with vp.attach(model, PRUNERS["schedule"], visual), pytest.raises(UnsupportedModelError, match="each head"):
        model(inputs_embeds=embeds, attention_mask=mask)
