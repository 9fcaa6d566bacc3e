"""The shipped test set is whole, small and not to be guessed; drawing and evaluating work end to end."""

import json
from collections import Counter
from random import Random

from PIL import Image

from visipruner.evaluation.scoring import majority_right
from visipruner.testbed.drawing import asks_about_the_unseen, draw_test_set, plan
from visipruner.testbed.evaluate import MAX_NEW_TOKENS, answer, as_records, batch_inputs, decode, tabulate
from visipruner.testbed.scenes import SCOPES, Question
from visipruner.testbed.scenes.combinations import is_held_out
from visipruner.testbed.scenes.layout import draw_scene
from visipruner.testbed.scenes.vocabulary import NUMBER_WORDS
from visipruner.testbed.testset import DATA_FOLDER, KNOWN, TEST_FOLDER, Sample, load_photos, load_test_set

SPLITS = {"scenes", "unseen-combinations", "unseen-style", "unseen-objects", KNOWN}


def test_shipped_set_is_whole():
    samples = load_test_set()
    assert len(samples) >= 2900
    pictures = {sample.image for sample in samples}
    assert len(pictures) == 500
    for path in pictures:
        with Image.open(path) as picture:
            picture.verify()
    assert all(SCOPES[sample.type] == sample.scope for sample in samples)
    assert {sample.type for sample in samples} == set(SCOPES)
    assert {sample.split for sample in samples} == SPLITS
    assert sum(path.stat().st_size for path in DATA_FOLDER.rglob("*") if path.is_file()) < 20e6


def test_counts_come_with_the_tally_they_end():
    """As many numbers as things, and only counts have one."""
    for sample in load_test_set():
        numbers = [word for word in sample.tally.replace(",", "").split() if word in NUMBER_WORDS]
        assert numbers == list(
            NUMBER_WORDS[1 : NUMBER_WORDS.index(sample.answer) + 1] if sample.type == "count" else []
        )


def test_shipped_set_cannot_be_guessed():
    samples = [sample for sample in load_test_set() if sample.split == "scenes"]
    by_type = {kind: [s.answer for s in samples if s.type == kind] for kind in SCOPES}
    assert sum(majority_right(answers) for answers in by_type.values()) / len(samples) < 0.45
    asked = Counter((sample.image, sample.question) for sample in samples)
    assert max(asked.values()) == 1


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


def test_licences_are_beside_what_they_cover():
    assert "CC-BY 4.0" in (TEST_FOLDER / "LICENCES").read_text()
    photos = load_photos()
    text = (photos[0].parent / "LICENCES").read_text()
    assert photos
    assert all(photo.name in text and photo.stat().st_size < 200_000 for photo in photos)


def test_drawing_twice_gives_the_same(emoji, tmp_path):
    counts = [draw_test_set(emoji, tmp_path / name, pictures=4, unseen=2) for name in ("one", "two")]
    assert counts[0] == counts[1] > 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    records = [json.loads(line) for line in (tmp_path / "one" / "questions.jsonl").read_text().splitlines()]
    assert {record["split"] for record in records} <= SPLITS


def test_table_counts_right_answers_per_type_and_split(tmp_path):
    def sample(kind, expected, split="scenes"):
        return Sample(tmp_path / "x.jpg", "?", expected, kind, SCOPES[kind], split)

    samples = [
        sample("count", "two"),
        sample("count", "one"),
        sample("text", "stop"),
        sample("text", "a", "unseen-style"),
    ]
    rows = {row.name: row for row in tabulate(samples, ["2", "two", "stop", "b"], ["", "one", "", None])}
    assert (rows["count"].right, rows["count"].blank, rows["count"].majority, rows["count"].total) == (1, 1, 1, 2)
    assert (rows["overall"].right, rows["overall"].total) == (2, 3)
    assert rows["all local"].right == 1
    assert rows["unseen-style"].right == 0
    assert rows["unseen-style"].blank is None
    assert as_records([rows["overall"]])[0]["accuracy"] == 2 / 3


def test_answers_do_not_depend_on_the_batch(model, processor, emoji, tmp_path):
    draw_test_set(emoji, tmp_path, pictures=2, unseen=0, questions=4)
    samples = load_test_set(tmp_path)
    together = answer(model, processor, samples, batch_size=8)
    assert together == answer(model, processor, samples, batch_size=1)
    assert len(together) == len(samples)
    assert answer(model, processor, samples, blank=True) != together


def test_answers_with_a_shared_picture_are_those_of_whole_prompts(model, processor, emoji, tmp_path):
    draw_test_set(emoji, tmp_path, pictures=3, unseen=0, questions=4)
    samples = load_test_set(tmp_path)
    expected = []
    for sample in samples:
        inputs = batch_inputs(model, processor, [sample])
        expected += decode(processor, inputs, model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False))
    assert answer(model, processor, samples) == expected
    assert len(set(expected)) > 1
