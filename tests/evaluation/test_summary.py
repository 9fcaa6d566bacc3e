"""The numbers of a comparison, on records written by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visipruner.errors import ConfigError
from visipruner.evaluation import as_markdown, pictures, summarize
from visipruner.evaluation.certainty import interval
from visipruner.evaluation.pictures import draw_budgets
from visipruner.evaluation.rows import against


def _record(number: int, dense: str, other: str, answers: tuple[str, ...] = ("cat",)) -> dict[str, Any]:
    def given(answer: str, cut: float, seconds: float) -> dict[str, Any]:
        return {
            "answer": answer,
            "tokens": 2,
            "seconds": seconds,
            "prefill_seconds": seconds / 2,
            "selection_seconds": seconds / 20,
            "flops_cut": cut,
            "visual_attention_cut": cut,
            "tokens_per_layer": [10, round(10 * (1 - cut))],
        }

    return {
        "key": str(number),
        "image": f"{number // 2}.png",
        "question": "?",
        "answers": list(answers),
        "type": "name" if number % 2 else "count",
        "given": {"dense": given(dense, 0.0, 2.0), "half": given(other, 0.5, 1.0)},
    }


def test_rows_say_what_happened() -> None:
    records = [_record(n, "A cat.", "cat" if n < 6 else "dog") for n in range(12)] + [
        _record(12, "dog", "cat"),
        _record(13, "dog", "dog"),
    ]
    dense, half = summarize(records)
    assert dense["accuracy"]["value"] == pytest.approx(12 / 14)
    assert dense["difference"] is None
    assert half["accuracy"]["value"] == pytest.approx(7 / 14)
    assert half["difference"]["value"] == pytest.approx(-5 / 14)
    assert (half["broken"], half["repaired"]) == (6, 1)
    assert half["agreement"]["value"] == pytest.approx(7 / 14)
    # Images 0 to 2 are unchanged, 3 to 5 lose both answers, the last wins one: totals of 2, 2, 2 and -1.
    assert half["p"] == half["p_holm"] == pytest.approx(4 / 16)
    assert half["is_significant"] is False
    assert half["difference"]["low"] <= half["difference"]["value"] <= half["difference"]["high"]
    assert half["visual_tokens"] == 7.5
    assert half["prefill_ratio"] == half["answer_ratio"] == 2.0
    assert half["selection_share"] == pytest.approx(0.1)
    assert half["by_type"]["name"]["total"] == 7
    table = as_markdown([dense, half])
    assert "| half | 50.0 %" in table
    assert "6 / 1" in table


def test_methods_are_compared_with_one_of_them() -> None:
    records = [_record(n, "cat", "cat" if n < 6 else "dog") for n in range(12)]
    for record in records:
        record["given"]["third"] = {**record["given"]["half"], "answer": "cat" if record["key"] in "0123" else "dog"}
    to_dense, _ = against(records, "half")
    half = summarize(records)[1]
    assert to_dense["method"] == "dense"
    assert to_dense["difference"]["value"] == -half["difference"]["value"] == 0.5
    assert to_dense["p"] == half["p"]
    third = against(records, "half")[1]
    assert (third["method"], third["p"]) == ("third", 1.0)  # one image's two answers
    assert third["difference"]["value"] == pytest.approx(-2 / 12)
    assert [row["p_holm"] for row in against(records, "half")] == [2 * to_dense["p"], 1.0]
    with pytest.raises(ConfigError, match="There is no 'quarter' among dense, half, third"):
        against(records, "quarter")
    records[0]["answers"] = []
    with pytest.raises(ConfigError, match="The right answers are not known"):
        against(records, "half")


def test_selection_that_was_not_timed_is_a_dash() -> None:
    records = [_record(n, "cat", "cat") for n in range(4)]
    records[2]["given"]["half"]["selection_seconds"] = None  # that part ran on a GPU
    dense, half = summarize(records)
    assert dense["selection_share"] == pytest.approx(0.1)
    assert half["selection_share"] is None
    lines = as_markdown([dense, half]).splitlines()
    assert lines[2].endswith("| 10.0 % |")
    assert lines[3].endswith("| 2.00x | - |")


def test_no_difference_is_said() -> None:
    records = [_record(n, "cat" if n % 3 else "dog", "cat" if n % 4 else "dog") for n in range(24)]
    rows = summarize(records)
    assert rows[1]["is_significant"] is False
    assert " n.s. |" in as_markdown(rows)
    assert "n.s.: no significant difference" in as_markdown(rows)
    clear = summarize([_record(n, "cat", "dog" if n % 5 else "cat") for n in range(24)])
    assert clear[1]["is_significant"] is True
    assert " n.s. |" not in as_markdown(clear)


def test_without_variation_there_is_no_interval(tmp_path: Path) -> None:
    """No method differs anywhere, or there is one image only: a resample would be the sample."""
    same = summarize([_record(n, "cat", "cat") for n in range(6)])
    assert same[1]["difference"] == {"value": 0.0, "low": None, "high": None}
    assert (same[1]["p"], same[1]["is_significant"]) == (1.0, False)
    one = summarize([_record(n, "cat", "dog") for n in range(2)])
    assert one[1]["difference"] == {"value": -1.0, "low": None, "high": None}
    assert (one[1]["p"], one[1]["is_significant"]) == (1.0, False)
    table = as_markdown(one)
    assert "| dense | 100.0 % (no interval) |" in table
    assert "| -100.0 (no interval) n.s. | 1 | 1 |" in table
    draw_budgets(one, tmp_path / "chart.png")
    pictures.draw_ranking(one, tmp_path / "ranking.png")
    assert Image.open(tmp_path / "ranking.png").size[0] > 400


def test_a_long_path_leaves_room_for_the_chart(tmp_path: Path) -> None:
    rows = summarize([_record(n, "cat", "dog" if n % 3 else "cat") for n in range(12)])
    rows[1]["method"] = "/home/" + 120 * "x" + "/pruner.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of axes without room
        pictures.draw_ranking(rows, tmp_path / "ranking.png")
    assert Image.open(tmp_path / "ranking.png").size[0] > 400


def test_significance_is_corrected_for_all_rows_of_the_table() -> None:
    """Six images lose an answer and none wins one: enough for one setting, not for the first of two."""
    records = [_record(n, "cat", "dog" if n % 2 and n < 12 else "cat") for n in range(24)]
    alone = summarize(records)[1]
    assert alone["p"] == alone["p_holm"] == pytest.approx(2 / 2**6)
    assert alone["is_significant"] is True
    for record in records:
        record["given"] |= {"other": record["given"]["dense"]}
    rows = summarize(records)
    assert [row["p_holm"] for row in rows] == [None, pytest.approx(4 / 2**6), 1.0]
    assert [row["is_significant"] for row in rows] == [None, False, False]
    assert " n.s. | 0.0312 | 0.0625 |" in as_markdown(rows)


def test_unknown_answers_leave_agreement(tmp_path: Path) -> None:
    rows = summarize([_record(n, "cat", "cat" if n % 2 else "dog", ()) for n in range(6)])
    assert rows[1]["accuracy"] is None
    assert rows[1]["agreement"]["value"] == 0.5
    assert "not known" in as_markdown(rows)
    draw_budgets(rows, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 600
    pictures.draw_ranking(rows, tmp_path / "ranking.png")
    assert Image.open(tmp_path / "ranking.png").size[0] > 400


def test_intervals_cover_the_truth() -> None:
    """95 % intervals of a known proportion, images of two questions that share their fate."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        fate = (generator.random(40) < 0.7).astype(float)
        found = interval(np.repeat(fate, 2), [str(n // 2) for n in range(80)], seed=trial)
        hits += found["low"] <= 0.7 <= found["high"]
    assert hits >= 52
    naive = interval(np.repeat(fate, 2), [str(n) for n in range(80)])
    assert naive["high"] - naive["low"] < found["high"] - found["low"]


def test_more_accepted_answers(tmp_path: Path) -> None:
    row = summarize([_record(n, "kitten", "cat", ("cat", "kitten")) for n in range(4)])[0]
    assert row["accuracy"]["value"] == 1


class _Halves:
    """Half a point for a cat; something official besides."""

    def score(self, record: dict[str, Any], answer: str) -> float | None:
        return 0.5 if answer == "cat" else 0.0

    def official(self, records: list[dict[str, Any]], method: str) -> dict[str, Any]:
        return {"scores": {"points": 100.0 if method == "dense" else 12.345}, "parts": {}}


def test_scores_between_wrong_and_right() -> None:
    dense, half = summarize([_record(n, "cat", "cat" if n < 3 else "dog") for n in range(6)], scoring=_Halves())
    assert dense["accuracy"]["value"] == 0.5
    assert half["accuracy"]["value"] == pytest.approx(0.25)
    assert half["difference"]["value"] == pytest.approx(-0.25)
    assert (half["broken"], half["repaired"]) == (3, 0)
    assert half["by_type"] == {"count": {"right": 1.0, "total": 3}, "name": {"right": 0.5, "total": 3}}
    table = as_markdown([dense, half])
    assert table.splitlines()[-4:] == [
        "| official score | points |",
        "|---|---|",
        "| dense | 100.00 |",
        "| half | 12.35 |",
    ]


def test_many_images_do_not_need_the_memory_of_their_square() -> None:
    generator = np.random.default_rng(0)
    values = (generator.random(6000) < 0.7).astype(float)
    found = interval(values, [str(n) for n in range(6000)])
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * (0.21 / 6000) ** 0.5, rel=0.05)
