"""The shipped parts are what their seeds draw, and say no more than the pictures do."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from research.parts import PHOTOGRAPHS, SIZES, Size, draw_part, planned
from research.scenes.photographs import KEPT_KINDS, TRAINED
from research.scenes.vocabulary import COLORS
from visipruner_testbed.testset import DATA_FOLDER, PARTS, QUESTIONS_FILE, load_test_set

TABLE = np.array(list(COLORS.values()), np.float32)


def shipped(part):
    lines = (DATA_FOLDER / part / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("part", PARTS)
def test_every_line_follows_from_its_seed(part):
    planned_lines = [json.dumps(record) for _, _, records in planned(part, SIZES[part]) for record in records]
    assert planned_lines == (DATA_FOLDER / part / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("part", PARTS)
def test_no_answer_is_a_safe_guess(part):
    types = Counter(record["type"] for record in shipped(part))
    answers = Counter((record["type"], record["answer"]) for record in shipped(part))
    assert all(count < 0.4 * types[kind] for (kind, _), count in answers.items())


def test_few_tokens_decide():
    assert max(len(record["where"]) for record in shipped("local")) <= 0.02 * 24 * 24
    assert min(len(record["where"]) for record in shipped("local")) >= 1
    assert max(len(record["where"]) for record in shipped("documents")) <= 0.05 * 24 * 24
    assert sum(len(record["where"]) for record in shipped("many")) / len(shipped("many")) > 50


def test_pixels_have_the_colours_that_are_told():
    """Of shapes the middle, of mosaics most of the picture."""
    checked = Counter()
    for sample, record in zip(load_test_set(DATA_FOLDER / "local"), shipped("local"), strict=True):
        if sample.type == "small-color":
            left, top, right, bottom = (round(side * 336) for side in record["boxes"][0])
            middle = pixels(sample.image)[(top + bottom) // 2 - 1 : (top + bottom) // 2 + 2, (left + right) // 2]
            checked[nearest(middle.mean(axis=0)) == sample.answer] += 1
    for sample in load_test_set(DATA_FOLDER / "many"):
        if sample.type == "most-ground":
            names = [nearest(color) for color in pixels(sample.image)[4::9, 4::9].reshape(-1, 3)]
            checked[max(set(names), key=names.count) == sample.answer] += 1
    assert checked == {True: 160}


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.float32)


def nearest(color):
    return list(COLORS)[int(((TABLE - color) ** 2).sum(axis=1).argmin())]


@pytest.mark.parametrize("part", SIZES)
def test_drawing_twice_gives_the_same(emoji, tmp_path, part):
    size = Size(4, 2)
    counts = [draw_part(emoji, tmp_path / name, part, size) for name in ("one", "two")]
    assert counts[0] == counts[1] > 0
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 5
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_photographs_are_asked_about_by_kind():
    splits = {record["split"]: scene for _, scene, records in planned(PHOTOGRAPHS, Size(8, 3)) for record in records}
    assert set(splits) == {PHOTOGRAPHS, "photographed-kinds"}
    assert {item.name for item in splits[PHOTOGRAPHS].items} <= TRAINED.keys()
    assert {item.name for item in splits["photographed-kinds"].items} <= KEPT_KINDS.keys()
    assert all(item.style.startswith("stamps/") for scene in splits.values() for item in scene.items)
