"""Scenes in which few tokens decide: nothing over another, answers where they say, in looks that no test shares."""

from dataclasses import fields
from random import Random

import numpy as np
import pytest

from research.scenes import CANVAS, TRAIN_LOOK, UNSEEN_LOOK, draw_small_example
from research.scenes.grounds import GROUNDS, textured
from research.scenes.photographs import KEPT, KEPT_KINDS, TRAINED
from research.scenes.questions import SCOPES, SMALL_SCOPES
from research.scenes.render import render
from research.scenes.small import PARTS, box_of, draw_small, places_told
from research.scenes.vocabulary import LABELS, NUMBER_WORDS, OBJECTS, WORDS

LOOKS = {"trained": TRAIN_LOOK, "unseen": UNSEEN_LOOK}


def drawn(part, look, count):
    return [draw_small(Random(f"small/{part}/{index}"), part, look, index) for index in range(count)]


def test_looks_share_nothing():
    for field in fields(TRAIN_LOOK):
        trained, unseen = (getattr(look, field.name) for look in (TRAIN_LOOK, UNSEEN_LOOK))
        if isinstance(trained, tuple):
            assert not set(trained) & set(unseen), field.name
    assert not UNSEEN_LOOK.photographs


def test_photographs_of_the_test_are_of_known_things_and_never_trained_on():
    trained = {file for files in TRAINED.values() for file in files}
    kept = {file for files in (*KEPT.values(), *KEPT_KINDS.values()) for file in files}
    assert not trained & kept
    assert KEPT.keys() <= TRAINED.keys() <= OBJECTS.keys()
    assert KEPT_KINDS.keys() <= OBJECTS.keys() - TRAINED.keys()


def test_types_and_words_are_of_one_kind():
    assert not SCOPES.keys() & SMALL_SCOPES.keys()
    assert not set(LABELS) & {*WORDS, *OBJECTS}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("part", PARTS)
def test_every_type_is_asked_and_answered_by_its_items(part, look):
    types = set()
    for scene, asked in drawn(part, LOOKS[look], 24):
        assert asked
        for one in asked:
            question, items = one.question, [scene.items[index] for index in one.items]
            types.add(question.type)
            first = items[0]
            assert question.answer == answer_of(question.type, scene, items)
            if question.type in ("small-place", "small-color"):
                assert f"the {first.name}?" in question.question
                assert sum(item.name == first.name for item in scene.items) == 1
            if question.type in ("small-number", "plate"):
                assert f"{first.color} {first.kind}" in question.question
            if question.type == "odd-one":
                assert len({item.name for item in scene.items}) == 2
                assert sum(item.name == question.answer for item in scene.items) == 1
            if question.type == "after-label":
                label = scene.items[one.items[0] - 1]
                assert label.y == first.y
                assert label.x < first.x
                assert label.name.removesuffix(":") in question.question
    assert types <= SMALL_SCOPES.keys()
    assert len(types) == {"local": 7, "many": 3, "documents": 2}[part]


def answer_of(kind, scene, items):
    """What the items that hold it make the answer."""
    match kind:
        case "small-place" | "odd-place":
            return items[0].position
        case "small-color":
            return items[0].color
        case "plate":
            return on_it(scene, items[0])
        case "count-many":
            return NUMBER_WORDS[len(items)]
        case "most-things" | "most-ground":
            return most(scene)
    return items[0].name.removesuffix(":")


def on_it(scene, plate):
    [thing] = [item.name for item in scene.items if item.kind == "emoji" and (item.x, item.y) == (plate.x, plate.y)]
    return thing


def most(scene):
    names = [item.name for item in scene.items]
    return max(set(names), key=names.count)


@pytest.mark.parametrize("look", LOOKS)
def test_things_lie_apart_and_inside(look):
    for part in PARTS:
        for scene, _ in drawn(part, LOOKS[look], 12):
            boxes = [box_of(item) for item in scene.items if item.kind != "tile"]
            plates = [(item.x, item.y) for item in scene.items if item.kind == "plate"]
            boxes = [box for box, item in zip(boxes, scene.items, strict=False) if
                     item.kind != "emoji" or (item.x, item.y) not in plates]  # fmt: skip
            assert all(min(box) >= 0 and max(box) <= 1 for box in boxes)
            for number, (left, top, right, bottom) in enumerate(boxes):
                for other in boxes[number + 1 :]:
                    assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top


def test_a_box_holds_what_is_drawn_of_its_item(art):
    """The pixels that an item owns lie in its box, and fill it from side to side."""
    for part in PARTS:
        for scene, asked in drawn(part, TRAIN_LOOK, 6):
            _, owner = render(scene, art)
            for index in {index for one in asked for index in one.items}:
                ys, xs = np.nonzero(owner == index)
                left, top, right, bottom = (side * CANVAS for side in box_of(scene.items[index]))
                assert min(xs.min() - left, ys.min() - top, right - xs.max(), bottom - ys.max()) >= -1.5
                assert max(xs.max() - xs.min(), ys.max() - ys.min()) > 0.6 * max(right - left, bottom - top)


def test_a_training_example_is_drawn_the_same_twice(art):
    for part in PARTS:
        one, two = (draw_small_example("train-0", 3, art, part, 5) for _ in range(2))
        assert np.array_equal(np.asarray(one.picture), np.asarray(two.picture))
        assert np.array_equal(one.owner, two.owner)
        assert one.questions == two.questions
        assert 1 <= len(one.questions) <= 5


def test_training_is_told_more_of_what_is_there_once():
    told = 0
    for index in range(24):
        scene, _ = draw_small(Random(f"told/{index}"), "local", TRAIN_LOOK, index)
        things = [item for item in scene.items if item.kind == "emoji"]
        for question in places_told(Random(0), scene):
            told += 1
            if question.type == "small-place":
                [thing] = [item for item in things if f"the {item.name}?" in question.question]
                assert thing.position == question.answer
            else:
                [thing] = [item for item in scene.items if f"the {item.position}?" in question.question]
                assert thing.name == question.answer
    assert told > 100


@pytest.mark.parametrize("kind", GROUNDS)
def test_grounds_are_textured_and_light(kind):
    pixels = np.asarray(textured(kind, 84, np.random.default_rng(3)), np.float32)
    assert pixels.shape == (84, 84, 3)
    assert 120 < pixels.mean() < 252
    assert pixels.std(axis=(0, 1)).max() > 1
