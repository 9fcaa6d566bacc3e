"""The paper's formulas: hand-computed cases, the published totals, and what must hold for any schedule."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.paper_costs import (
    MEAN_SCHEDULE,
    compare_with_paper,
    filtered_after,
    format_table,
    main,
    mean_tokens,
    total_cut,
    visual_flops_cut,
)
from visipruner.accounting import (
    LLAVA_1_5_7B,
    LLAVA_1_5_13B,
    LayerSpan,
    PaperModel,
    cross_attention_macs,
    model_from_trace,
    schedule_from_trace,
    visual_attention_cut,
    visual_layer_macs,
    visual_macs,
)
from visipruner.accounting.record import ExampleTrace
from visipruner.models.shape import ModelShape

TINY = ModelShape(3, 10, 2, 2, 5, 20, 100)
TINY_PROMPT = PaperModel("tiny", TINY, visual_tokens=4, text_tokens=2)


def test_one_layer_by_hand() -> None:
    # n=4, d=10, m=20: 4*4*100 = 1600, 2*16*10 = 320, 3*4*10*20 = 2400.
    assert visual_layer_macs(TINY, LayerSpan(1, 4)) == 4320
    assert visual_layer_macs(TINY, LayerSpan(1, 4, visual_attention=False)) == 4000
    # Keys and values alone: 2*4*100.
    assert visual_layer_macs(TINY, LayerSpan(1, 4, visual_updates=False)) == 800


def test_frozen_layers_by_hand() -> None:
    schedule = (LayerSpan(1, 4), LayerSpan(2, 4, visual_updates=False))
    assert visual_macs(TINY, schedule) == 4320 + 2 * 800
    # Text rows see visual ones in all three layers (160 each), these see one another in the first (320).
    assert cross_attention_macs(TINY_PROMPT, schedule) == 480
    assert visual_attention_cut(TINY_PROMPT, schedule) == pytest.approx(1 - (320 + 480) / 1440)
    example = ExampleTrace(prompt_length=6, num_visual=4, kept=[[0, 1, 2, 3]] * 4, visual_attention=[True] * 3)
    example.frozen = [1, 2]
    assert schedule_from_trace(example) == (LayerSpan(1, 4), *[LayerSpan(1, 4, visual_updates=False)] * 2)


def test_schedule_by_hand_with_a_fraction_of_a_layer() -> None:
    # One shallow layer, half a full one, then 1 token in one layer: 400 + 20 + 600 = 1020.
    schedule = (LayerSpan(1, 4, False), LayerSpan(0.5, 4), LayerSpan(1, 1))
    assert visual_macs(TINY, schedule) == 4000 + 2160 + 1020
    assert total_cut(TINY_PROMPT, schedule) == pytest.approx(1 - 7180 / 12960)
    # Cross: 0.5 * 2*4*2*10 + 1 * 2*1*2*10 = 80 + 40; dense 3 * 160.
    assert cross_attention_macs(TINY_PROMPT, schedule) == 120
    assert visual_flops_cut(TINY_PROMPT, schedule) == pytest.approx(1 - 7300 / 13440)
    # Self: 0.5*320 + 20 = 180, dense 960; as printed the cross term above is 60.
    assert visual_attention_cut(TINY_PROMPT, schedule) == pytest.approx(1 - 300 / 1440)
    assert visual_attention_cut(TINY_PROMPT, schedule, as_printed=True) == pytest.approx(1 - 240 / 1440)


@pytest.mark.parametrize(("model", "printed"), [(LLAVA_1_5_7B, 3.82e12), (LLAVA_1_5_13B, 7.44e12)])
def test_dense_totals_are_the_printed_ones_to_the_last_digit(model: PaperModel, printed: float) -> None:
    assert visual_macs(model.shape, model.dense_schedule) == pytest.approx(printed, abs=0.005e12)


def test_mean_schedule_gives_the_papers_totals() -> None:
    assert visual_macs(LLAVA_1_5_7B.shape, MEAN_SCHEDULE) == pytest.approx(1.76e12, abs=0.01e12)
    assert 100 * total_cut(LLAVA_1_5_7B, MEAN_SCHEDULE) == pytest.approx(53.9, abs=0.2)


def test_visual_flops_cut_needs_another_filter_layer_than_the_total() -> None:
    assert 100 * visual_flops_cut(LLAVA_1_5_7B, filtered_after(LLAVA_1_5_7B, 12.0)) == pytest.approx(62.8, abs=0.05)
    assert 100 * visual_flops_cut(LLAVA_1_5_7B, filtered_after(LLAVA_1_5_7B, 14.8)) == pytest.approx(54.4, abs=0.05)


@pytest.mark.parametrize(("tokens", "printed"), [(192, 86.4), (184.5, 87.3), (64, 97.6), (57.6, 98.0)])
def test_attention_formula_gives_the_papers_baselines(tokens: float, printed: float) -> None:
    cut = visual_attention_cut(LLAVA_1_5_7B, mean_tokens(LLAVA_1_5_7B, tokens))
    assert 100 * cut == pytest.approx(printed, abs=0.05)


def test_visual_attention_cut_of_the_kept_tokens_alone_exceeds_the_published_mean() -> None:
    kept_only = (LayerSpan(9.1, 10.3),)
    # 9.1 * (10.3^2 + 10.3*74) / (32 * (576^2 + 576*74)) = 9.1 * 868.29 / 11980800 = 0.000660
    assert visual_attention_cut(LLAVA_1_5_7B, kept_only) == pytest.approx(1 - 0.000660, abs=1e-6)
    # Printed: 9.1 * (2*10.3^2 + 10.3*74) / (64 * 374400) = 9.1 * 974.38 / 23961600 = 0.000370
    assert visual_attention_cut(LLAVA_1_5_7B, kept_only, as_printed=True) == pytest.approx(1 - 0.000370, abs=1e-6)


def test_schedule_of_a_trace() -> None:
    example = ExampleTrace(prompt_length=6, num_visual=4, kept=[[0, 1, 2, 3], [0, 1, 2, 3], [2], []])
    example.visual_attention = [False, True, True]
    assert schedule_from_trace(example) == (
        LayerSpan(1, 4, False),
        LayerSpan(1, 4, True),
        LayerSpan(1, 1, True),
    )
    model = model_from_trace(TINY, example)
    assert (model.visual_tokens, model.text_tokens) == (4, 2)
    assert total_cut(model, schedule_from_trace(example)) == pytest.approx(1 - (4000 + 4320 + 1020) / 12960)


def test_prompt_without_vision_has_nothing_to_cut() -> None:
    example = ExampleTrace(prompt_length=6, num_visual=0, kept=[[], [], [], []], visual_attention=[True] * 3)
    model, schedule = model_from_trace(TINY, example), schedule_from_trace(example)
    assert [cut(model, schedule) for cut in (total_cut, visual_flops_cut, visual_attention_cut)] == [0, 0, 0]


@given(
    counts=st.lists(st.integers(0, 576), min_size=32, max_size=32),
    layer=st.integers(0, 31),
    shallow=st.lists(st.booleans(), min_size=32, max_size=32),
)
def test_cuts_are_fractions_and_fall_with_every_token_kept(counts: list[int], layer: int, shallow: list[bool]) -> None:
    def cuts(tokens: list[int]) -> list[float]:
        schedule = [LayerSpan(1, count, not skips) for count, skips in zip(tokens, shallow, strict=True)]
        return [cut(LLAVA_1_5_7B, schedule) for cut in (total_cut, visual_flops_cut, visual_attention_cut)]

    fewer = [count - (index == layer and count > 0) for index, count in enumerate(counts)]
    for cut, cut_of_fewer in zip(cuts(counts), cuts(fewer), strict=True):
        assert -1e-12 <= cut <= cut_of_fewer <= 1
    if counts[layer]:
        assert cuts(fewer)[0] > cuts(counts)[0]


def test_table_and_json_hold_every_published_number(capsys: pytest.CaptureFixture[str]) -> None:
    rows = compare_with_paper()
    assert {3.82, 7.44, 1.76, 53.9, 62.8, 98.3} <= {row.published for row in rows}
    table = format_table(rows).splitlines()
    assert len(table) == len(rows) + 2
    assert table[2] == "| dense LLaVA-1.5-7B | n = 576 visual tokens | 3.82 T | 3.817 T | -0.003 |"
    main(["--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [row["ours"] for row in printed] == [row.ours for row in rows]
    assert printed[0]["difference"] == pytest.approx(-0.00285, abs=1e-5)
    main([])
    assert capsys.readouterr().out.splitlines() == table
