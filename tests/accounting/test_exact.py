"""Exact multiply-adds: a grouped-query model small enough to count by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visipruner.accounting import (
    Macs,
    decode_macs,
    dense_decode_macs,
    dense_macs,
    dense_work,
    layer_macs,
    prompt_cut,
    prompt_macs,
)
from visipruner.accounting.record import ExampleTrace, LayerWork
from visipruner.models.shape import ModelShape

# d=10, 4 query heads and 2 key/value heads of 3 (so H h = 12, not d), m=7, V=50.
GQA = ModelShape(2, 10, 4, 2, 3, 7, 50)


def test_one_layer_by_hand() -> None:
    ran = {"rows": 5, "attention_rows": 4, "key_rows": 3, "value_rows": 2, "attention_pairs": 12}
    work = LayerWork(**ran, score_pairs=6, score_rows=3)
    assert layer_macs(GQA, work) == Macs(
        query_output=4 * (10 * 12 + 12 * 10),  # 960
        key_value=3 * 10 * 6 + 2 * 10 * 6,  # 300
        attention=12 * 4 * (3 + 3),  # 288
        ffn=5 * (70 + 70 + 70),  # 1050
        score=6 * 4 * (3 + 3) + 3 * 10 * (12 + 6 + 6),  # 144 + 720: queries, keys and values of three rows
    )


def test_a_routers_choice_by_hand() -> None:
    # 8 experts: 10 * 8 for each of 5 rows, beside 3 * 10 * 7.
    assert layer_macs(replace(GQA, num_experts=8), LayerWork(5, 0, 0, 0, 0)) == Macs(ffn=5 * (80 + 210))


def test_dense_prompt_by_hand() -> None:
    macs = dense_macs(GQA, 5, logit_rows=1)
    # Per layer: 5*240 + 5*120 + 25*24 + 5*210 = 1200 + 600 + 600 + 1050 = 3450; head 10*50.
    assert macs == Macs(query_output=2400, key_value=1200, attention=1200, ffn=2100, lm_head=500)
    assert macs.total == 7400
    assert macs.flops == 14800
    assert macs.to_dict()["flops"] == 14800


def test_pruned_prompt_and_its_cut_by_hand() -> None:
    work = [LayerWork(5, 5, 5, 5, 25, score_pairs=5), LayerWork(3, 3, 3, 3, 9)]
    example = ExampleTrace(prompt_length=5, num_visual=3, work=work)
    # Layer 0: 3450 + 5*24 = 3570. Layer 1: 720 + 360 + 216 + 630 = 1926.
    assert prompt_macs(GQA, example).total == 5496
    assert prompt_cut(GQA, example) == pytest.approx(1 - 5496 / 6900)
    # Padded to 6 rows the plain model would have run 2 * (1440 + 720 + 864 + 1260) = 8568.
    assert prompt_cut(GQA, example, dense_length=6) == pytest.approx(1 - 5496 / 8568)
    assert prompt_cut(GQA, example, logit_rows=1) == pytest.approx(1 - 5996 / 7400)


def test_scores_that_save_nothing_cost() -> None:
    work = [LayerWork(5, 5, 5, 5, 25, score_pairs=5)] * 2
    assert prompt_cut(GQA, ExampleTrace(prompt_length=5, num_visual=3, work=work)) == pytest.approx(-240 / 6900)


def test_new_token_by_hand() -> None:
    # Layer 0 holds 5 keys, layer 1 holds 3; the second new token sees 2 more in each.
    # Per layer 240 + 120 + 210 = 570; attention (7 + 5) * 24 = 288; head 500.
    assert decode_macs(GQA, [5, 3], step=1).total == 2 * 570 + 288 + 500
    assert dense_decode_macs(GQA, 5, step=1, logit_rows=0).total == 2 * 570 + 14 * 24
    with pytest.raises(ValueError, match="1 layers for a model of 2"):
        decode_macs(GQA, [5])


def test_square_attention_is_the_papers_formula() -> None:
    shape = ModelShape(1, 4096, 32, 32, 128, 11008, 32000)
    n, d, m = 576, 4096, 11008
    assert dense_macs(shape, n).total == 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


@given(text=st.integers(1, 40), counts=st.lists(st.integers(0, 60), min_size=2, max_size=6), layer=st.integers(0, 5))
def test_cut_is_a_fraction_and_falls_with_every_row_kept(text: int, counts: list[int], layer: int) -> None:
    shape = ModelShape(len(counts), 10, 4, 2, 3, 7, 50)
    length = text + 60

    def cut(tokens: list[int]) -> float:
        work = [dense_work(shape, text + count)[0] for count in tokens]
        return prompt_cut(shape, ExampleTrace(prompt_length=length, num_visual=60, work=work))

    layer %= len(counts)
    more = [count + (index == layer) for index, count in enumerate(counts)]
    assert 0 <= cut(counts) < 1
    assert cut(more) < cut(counts)
    assert cut([60] * len(counts)) == 0
