"""The shipped test set is what the scenes draw; drawing is repeatable."""

import json
from collections import Counter
from random import Random

from research.drawing import asks_about_the_unseen, draw_test_set, plan
from research.scenes import SCOPES, Question
from research.scenes.combinations import is_held_out
from research.scenes.layout import draw_scene
from research.scenes.vocabulary import NUMBER_WORDS
from visipruner_testbed.testset import KNOWN, load_test_set

SPLITS = {"scenes", "unseen-combinations", "unseen-style", "unseen-objects", KNOWN}


def test_shipped_questions_are_of_the_kinds_that_are_drawn():
    samples = load_test_set()
    assert all(SCOPES[sample.type] == sample.scope for sample in samples)
    assert {sample.type for sample in samples} == set(SCOPES)


def test_counts_come_with_the_tally_they_end():
    """As many numbers as things, and only counts have one."""
    for sample in load_test_set():
        numbers = [word for word in sample.tally.replace(",", "").split() if word in NUMBER_WORDS]
        assert numbers == list(
            NUMBER_WORDS[1 : NUMBER_WORDS.index(sample.answer) + 1] if sample.type == "count" else []
        )


def test_unseen_parts_are_about_what_was_never_seen():
    """Every question's split follows from the scene that its picture's seed draws."""
    scenes = {
        f"{split}-{i:03d}.jpg": (split, options, draw_scene(Random(f"test-1/{split}/{i}"), options))
        for split, i, options in plan(302, 66)
    }
    found = Counter()
    for sample in load_test_set():
        split, options, scene = scenes[sample.image.name]
        question = Question(sample.question, sample.answer, sample.type)
        assert sample.split == (split if asks_about_the_unseen(question, options, scene.items[0]) else KNOWN)
        found[sample.split] += 1
        if sample.split == "unseen-objects":
            assert any(name[:3] in f"{sample.question} {sample.answer}".lower() for name in options.always)
        if sample.split == "unseen-combinations":
            pairs = [(item.name, item.position if item.kind == "emoji" else item.color) for item in scene.items]
            assert any(is_held_out(*pair) for pair in pairs)
            assert ("circle", "red") not in pairs  # easy-VQA has it
    assert found[KNOWN] < min(found["unseen-combinations"], found["unseen-objects"])


def test_drawing_twice_gives_the_same(emoji, tmp_path):
    counts = [draw_test_set(emoji, tmp_path / name, pictures=4, unseen=2) for name in ("one", "two")]
    assert counts[0] == counts[1] > 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    records = [json.loads(line) for line in (tmp_path / "one" / "questions.jsonl").read_text().splitlines()]
    assert {record["split"] for record in records} <= SPLITS
