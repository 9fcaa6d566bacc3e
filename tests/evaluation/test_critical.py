"""Tokens that hold the answer: the right cells of a grid, and in every layer the share of them that is left."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from tests.analysis.planted import pictures, planted
from visipruner import FixedSchedule, VisiPruner
from visipruner.accounting.record import ExampleTrace
from visipruner.errors import ConfigError
from visipruner.evaluation import DENSE, as_markdown, evaluate, summarize
from visipruner.evaluation.samples import Sample, covered, critical_tokens, load_samples
from visipruner.pruners.registry import make

LAYERS, SIDE, CELL = 6, 24, 14
METHODS = {
    "schedule": FixedSchedule(layers=(1,), keep=(3,)),
    "early": VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2, exit_layer=4),
    "random": make("random", keep_tokens=9),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return planted(tmp_path_factory.mktemp("model"), LAYERS, (2, 3))


@pytest.mark.parametrize("seed", range(20))
def test_cells_are_those_that_pixels_say(seed: int) -> None:
    """A picture of 336 pixels with two painted boxes, counted cell by cell."""
    rng, painted, boxes = Random(seed), [], []
    for _ in range(2):
        left, top = rng.randrange(300), rng.randrange(300)
        right, bottom = left + rng.randrange(1, 37), top + rng.randrange(1, 37)
        picture = np.zeros((SIDE * CELL, SIDE * CELL))
        picture[top:bottom, left:right] = 1
        painted.append(picture.reshape(SIDE, CELL, SIDE, CELL).sum(axis=(1, 3)).ravel())
        boxes.append((left / 336, top / 336, right / 336, bottom / 336))
    found = set(covered(boxes, SIDE, SIDE))
    wanted = {cell for counts in painted for cell in np.flatnonzero(counts >= CELL * CELL / 4)}
    assert wanted <= found <= wanted | {int(counts.argmax()) for counts in painted}
    assert all(max(counts[list(found)]) == counts.max() for counts in painted)


def test_a_box_on_another_grid() -> None:
    quarter = [(0.5, 0.0, 1.0, 0.5)]
    assert covered(quarter, 2, 2) == (1,)
    assert covered(quarter, 4, 4) == (2, 3, 6, 7)
    assert covered(quarter, 2, 4) == (2, 3)
    assert covered([(0.0, 0.0, 0.01, 0.01)], 2, 2) == (0,)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_left_follows_from_the_kept_sets(tiny: tuple[Any, Any], tmp_path: Path, batch_size: int) -> None:
    """5 x 5 tokens: a box over the two cells (1, 2) and (1, 3), and the tokens that each layer is known to have."""
    critical = {7, 8}
    samples = [replace(sample, boxes=((0.4, 0.2, 0.8, 0.4),)) for sample in pictures(tmp_path, 2)]
    records = list(evaluate(*tiny, samples, METHODS, max_new_tokens=2, keep_sets=True, batch_size=batch_size))
    seen = set()
    for record in records:
        for name, given in record["given"].items():
            kept: list[int] = []
            for layer, share in enumerate(given["critical_left"]):
                kept = given["kept"].get(str(layer), kept)
                assert share == len(critical & set(kept)) / 2
            seen.add((name, *given["critical_left"]))
    assert (DENSE, *[1.0] * LAYERS) in seen
    assert len({tuple(one[1:]) for one in seen}) > 2
    rows = {row["method"]: row for row in summarize(records)}
    for name, row in rows.items():
        shares = [record["given"][name]["critical_left"] for record in records]
        assert row["critical_left"] == pytest.approx([sum(layer) / len(shares) for layer in zip(*shares, strict=True)])
    dense, *_ = [line for line in as_markdown(list(rows.values())).splitlines() if line.startswith("| dense")]
    assert dense.endswith("| 100 / 100 / 100 % |")


def test_without_a_word_on_places_there_is_no_column(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    records = list(evaluate(*tiny, pictures(tmp_path, 1)[:1], METHODS, max_new_tokens=1))
    rows = summarize(records)
    assert [row["critical_left"] for row in rows] == [None] * 4
    assert "critical" not in as_markdown(rows)


def test_tokens_of_another_prompt_do_not_count() -> None:
    sample = Sample(Path("x.png"), "?", where=(3, 5), boxes=((0.5, 0.0, 1.0, 0.5),))
    whole = ExampleTrace(prompt_length=20, num_visual=16, grids=[(4, 4)])
    assert critical_tokens(sample, whole) == (2, 3, 6, 7)
    assert critical_tokens(replace(sample, boxes=()), whole) == (3, 5)
    crops = ExampleTrace(prompt_length=40, num_visual=32, grids=[None])
    assert critical_tokens(sample, crops) == (3, 5)
    smaller = ExampleTrace(prompt_length=8, num_visual=4, grids=[(2, 2)], unseen_visual=12)
    assert critical_tokens(sample, smaller) == (1,)
    assert critical_tokens(replace(sample, boxes=()), smaller) == ()


@pytest.mark.parametrize(
    "given",
    [{"where": 3}, {"where": ["3"]}, {"where": [-1]}, {"boxes": [[0, 0, 1]]}, {"boxes": [[0.5, 0, 0.2, 1]]},
     {"boxes": [[0, 0, 20, 30]]}],
)  # fmt: skip
def test_a_place_that_is_none_is_told(tmp_path: Path, given: dict[str, Any]) -> None:
    pictures(tmp_path, 1)
    image = next(path.name for path in tmp_path.iterdir() if path.suffix == ".png")
    file = tmp_path / "data.jsonl"
    good = {"image": image, "question": "?", "where": [4, 2], "boxes": [[0, 0.25, 0.5, 1]]}
    file.write_text(json.dumps(good))
    [sample] = load_samples(file)
    assert (sample.where, sample.boxes) == ((2, 4), ((0, 0.25, 0.5, 1),))
    file.write_text(json.dumps({**good, **given}))
    with pytest.raises(ConfigError, match=f'line 1: "{next(iter(given))}" must be'):
        load_samples(file)
