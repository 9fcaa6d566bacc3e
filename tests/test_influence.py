"""The score against a plain loop written from the paper's definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from visipruner.contract.influence import influence, last_row_attention


def _by_definition(
    query: Tensor, keys: Tensor, values: Tensor, visual: list[int], scaling: float
) -> tuple[list[list[float]], float]:
    """cos(o, o - c_j), ||c_j|| and ||o - c_j|| / ||o|| of every token, and ||o||, head by head, in float64."""
    heads, group = query.shape[0], query.shape[0] // keys.shape[0]
    parts = []
    for head in range(heads):
        k, v = keys[head // group].double(), values[head // group].double()
        weights = (k @ query[head].double() * scaling).softmax(0)
        parts.append(weights[:, None] * v)
    contributions = torch.cat(parts, dim=1)  # [n, heads * head_dim]
    output = contributions.sum(0)
    rows = []
    for j in visual:
        rest = output - contributions[j]
        cosine = torch.nn.functional.cosine_similarity(output, rest, dim=0)
        rows.append([float(cosine), float(contributions[j].norm()), float(rest.norm() / output.norm())])
    return rows, float(output.norm())


@settings(max_examples=60, deadline=None)
@example(kv_heads=1, group=1, keys=3, seed=5469, sharpness=5.0, visual={0, 1})  # one token is nearly all of the output
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    keys=st.integers(2, 12),
    seed=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.1, 1.0, 5.0]),
    visual=st.sets(st.integers(0, 11), min_size=1),
)
def test_influence_is_the_papers_definition(
    kv_heads: int, group: int, keys: int, seed: int, sharpness: float, visual: set[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = sorted({token % keys for token in visual})
    query = torch.randn(kv_heads * group, 8, generator=generator) * sharpness
    k, v = (torch.randn(kv_heads, keys, 8, generator=generator) for _ in range(2))
    result = influence(last_row_attention(query, k, 0.3), v, torch.tensor(tokens))
    rows, output_norm = _by_definition(query, k, v, tokens, 0.3)
    expected = torch.tensor(rows, dtype=torch.float64)
    # Where one token is nearly all of the output, little is left of float32's digits: errors grow as ||o|| / ||rest||.
    error = (result.cosine.double() - expected[:, 0]).abs() * expected[:, 2].clamp(max=1)
    assert bool((error < 1e-5).all())
    torch.testing.assert_close(result.norm.double(), expected[:, 1], atol=1e-5, rtol=1e-5)
    assert float(result.output_norm) == pytest.approx(output_norm, rel=1e-5)


def test_keys_out_of_sight_have_no_influence() -> None:
    torch.manual_seed(0)
    query, k, v = torch.randn(4, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    allowed = torch.tensor([True, False, True, True, True])
    result = influence(last_row_attention(query, k, 0.3, allowed), v, torch.tensor([1, 2]))
    assert result.norm[0] == 0
    assert result.cosine[0] == pytest.approx(1.0, abs=1e-7)
    shorter = influence(last_row_attention(query, k[:, allowed], 0.3), v[:, allowed], torch.tensor([1]))
    torch.testing.assert_close(result.norm[1:], shorter.norm)


def test_cosines_next_to_one_are_resolved_in_bfloat16() -> None:
    """bfloat16 cannot tell 0.999 from 1; the score takes bfloat16 rows and must."""
    torch.manual_seed(0)
    query, k, v = torch.randn(4, 64), torch.randn(4, 600, 64), torch.randn(4, 600, 64)
    low = [part.bfloat16() for part in (query, k, v)]
    visual = torch.arange(10, 500)
    exact = influence(last_row_attention(*(part.float() for part in low[:2]), 0.125), low[2].float(), visual)
    given_low = influence(last_row_attention(low[0], low[1], 0.125), low[2], visual)
    torch.testing.assert_close(given_low.cosine, exact.cosine, atol=1e-6, rtol=0)
    assert exact.cosine.unique().numel() > 400
