"""Scenes: the same draw twice, other seeds other pictures, owners that match what was drawn."""

import numpy as np
import pytest

from research.scenes import TRAIN_STYLES, EmojiArt, LayoutOptions, draw_example
from research.scenes.combinations import is_held_out
from research.scenes.scene import POSITIONS
from research.scenes.vocabulary import COLORS, OBJECTS, UNSEEN_OBJECTS, plural, with_article

OPTIONS = LayoutOptions(styles=TRAIN_STYLES)


@pytest.mark.parametrize("index", range(5))
def test_same_seed_same_example(art, index):
    one, two = (draw_example("train-0", index, art, OPTIONS, 8) for _ in range(2))
    assert one.scene == two.scene
    assert one.questions == two.questions
    assert np.array_equal(np.asarray(one.picture), np.asarray(two.picture))
    assert np.array_equal(one.owner, two.owner)


def test_other_seeds_and_indices_differ(art):
    drawn = [draw_example(seed, i, art, OPTIONS, 0).scene for seed in ("train-0", "test-0/scenes") for i in range(20)]
    assert len({repr(scene) for scene in drawn}) == len(drawn)


def test_pixels_of_an_item_differ_from_the_background_and_lie_in_its_place(art):
    for index in range(30):
        example = draw_example("owners", index, art, OPTIONS, 0)
        side = example.owner.shape[0]
        for number, item in enumerate(example.scene.items):
            ys, xs = np.nonzero(example.owner == number)
            assert len(ys), item
            if item.size < 0.5:
                assert abs(xs.mean() / side - item.x) < 0.12
                assert abs(ys.mean() / side - item.y) < 0.12
                assert item.position == POSITIONS[item.row][item.column]


def test_items_of_a_grid_do_not_share_a_place(art):
    for index in range(60):
        scene = draw_example("places", index, art, OPTIONS, 0).scene
        assert len({item.position for item in scene.items}) == len(scene.items)
        assert 1 <= len(scene.items) <= 6


def test_unseen_objects_are_never_drawn_for_training(art):
    assert not OBJECTS.keys() & UNSEEN_OBJECTS.keys()
    names = {item.name for i in range(300) for item in draw_example("train-0", i, art, OPTIONS, 0).scene.items}
    assert not names & UNSEEN_OBJECTS.keys()


def test_always_puts_the_object_there(art):
    options = LayoutOptions(styles=TRAIN_STYLES, always=("zebra",))
    there = [draw_example("zebras", i, art, options, 0).scene.items[0].name == "zebra" for i in range(40)]
    assert sum(there) > 25  # now and then it becomes a shape or a word


def _held_out(scene):
    return [
        item
        for item in scene.items
        if item.kind != "text" and is_held_out(item.name, item.position if item.kind == "emoji" else item.color)
    ]


def test_combinations_are_held_out_unless_asked_for(art):
    scenes = [draw_example("train-2", i, art, OPTIONS, 0).scene for i in range(300)]
    assert not any(_held_out(scene) for scene in scenes)
    options = LayoutOptions(styles=TRAIN_STYLES, held_out=True)
    found = [len(_held_out(draw_example("held-out", i, art, options, 0).scene)) for i in range(100)]
    assert sum(count == 1 for count in found) > 90
    assert max(found) == 1


def test_missing_pictures_say_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m research fetch"):
        EmojiArt(tmp_path).picture("noto", "cat")


@pytest.mark.parametrize(("name", "many"), [("cat", "cats"), ("mouse", "mice"), ("watch", "watches"), ("fox", "foxes")])
def test_plural(name, many):
    assert plural(name) == many


def test_articles():
    assert with_article("apple") == "an apple"
    assert {with_article(color) for color in ("red", "orange")} == {"a red", "an orange"}
    assert len(COLORS) == 11
