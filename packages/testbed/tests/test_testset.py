"""The shipped test set is whole, small and not to be guessed; evaluating works end to end."""

from collections import Counter

import pytest
from PIL import Image

from visipruner.errors import ConfigError
from visipruner.evaluation.samples import covered, load_samples, spread
from visipruner_testbed.datasets import Documents, Local, Many
from visipruner_testbed.evaluate import (
    MAX_NEW_TOKENS,
    answer,
    as_records,
    batch_inputs,
    decode,
    majority_right,
    tabulate,
)
from visipruner_testbed.report import folders_of
from visipruner_testbed.testset import (
    DATA_FOLDER,
    GRID,
    KNOWN,
    PARTS,
    QUESTIONS_FILE,
    TEST_FOLDER,
    Sample,
    load_photos,
    load_test_set,
)

SPLITS = {"scenes", "unseen-combinations", "unseen-style", "unseen-objects", KNOWN}


def test_shipped_set_is_whole():
    samples = load_test_set()
    assert len(samples) >= 2900
    pictures = {sample.image for sample in samples}
    assert len(pictures) == 500
    for path in pictures:
        with Image.open(path) as picture:
            picture.verify()
    assert {sample.split for sample in samples} == SPLITS
    assert sum(path.stat().st_size for path in TEST_FOLDER.rglob("*") if path.is_file()) < 10e6


def test_shipped_set_cannot_be_guessed():
    samples = [sample for sample in load_test_set() if sample.split == "scenes"]
    by_type = {kind: [s.answer for s in samples if s.type == kind] for kind in {s.type for s in samples}}
    assert sum(majority_right(answers) for answers in by_type.values()) / len(samples) < 0.45
    asked = Counter((sample.image, sample.question) for sample in samples)
    assert max(asked.values()) == 1


def test_parts_are_whole_small_and_say_where_their_answers_are():
    pictures, named = set(), {"local": Local, "many": Many, "documents": Documents}
    for part in PARTS:
        samples = load_test_set(DATA_FOLDER / part)
        assert {sample.split for sample in samples} == {part}
        own = {sample.image for sample in samples}
        pictures |= own
        for path in own:
            with Image.open(path) as picture:
                picture.verify()
        read = named[part].read(DATA_FOLDER, None).samples
        assert [(one.image, one.question, *one.answers) for one in read] == [
            (one.image, one.question, one.answer) for one in samples
        ]
        assert all(one.where == covered(one.boxes, GRID, GRID) for one in read)
        assert max(Counter((one.image, one.question) for one in samples).values()) == 1
    assert len(pictures) == 600
    assert sum(path.stat().st_size for path in pictures) < 12e6


def test_parts_are_tested_by_their_names(tmp_path):
    assert folders_of([]) == [TEST_FOLDER]
    assert folders_of([], tmp_path) == [tmp_path]
    assert folders_of(["many", "local", "many"]) == [DATA_FOLDER / "many", DATA_FOLDER / "local"]
    with pytest.raises(ConfigError, match="there are local, many, documents"):
        folders_of(["scenes"])
    with pytest.raises(ConfigError, match="not both"):
        folders_of(["many"], tmp_path)


def test_without_plain_scenes_the_table_has_the_types_of_all(tmp_path):
    samples = [
        Sample(tmp_path / "x.jpg", "?", "a", "after-label", "local", "documents"),
        Sample(tmp_path / "y.jpg", "?", "one", "count-many", "global", "many"),
    ]
    rows = {row.name: row.right for row in tabulate(samples, ["a", "two"], [None, None])}
    assert rows == {"after-label": 1, "count-many": 0, "all local": 1, "all global": 0, "overall": 1} | {
        "documents": 1,
        "many": 0,
    }


def test_licences_are_beside_what_they_cover():
    assert all("CC-BY 4.0" in (DATA_FOLDER / part / "LICENCES").read_text() for part in ("test", "local", "many"))
    assert "DejaVu" in (DATA_FOLDER / "documents" / "LICENCES").read_text()
    photos = load_photos()
    text = (photos[0].parent / "LICENCES").read_text()
    assert photos
    assert all(photo.name in text and photo.stat().st_size < 200_000 for photo in photos)


def test_table_counts_right_answers_per_type_and_split(tmp_path):
    scopes = {"count": "global", "text": "local"}

    def sample(kind, expected, split="scenes"):
        return Sample(tmp_path / "x.jpg", "?", expected, kind, scopes[kind], split)

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


def test_answers_do_not_depend_on_the_batch(model, processor, excerpt):
    samples = load_test_set(excerpt(scenes=2))
    together = answer(model, processor, samples, batch_size=8)
    assert together == answer(model, processor, samples, batch_size=1)
    assert len(together) == len(samples)
    assert answer(model, processor, samples, blank=True) != together


def test_answers_with_a_shared_picture_are_those_of_whole_prompts(model, processor, excerpt):
    samples = load_test_set(excerpt(scenes=3))
    expected = []
    for sample in samples:
        inputs = batch_inputs(model, processor, [sample])
        expected += decode(processor, inputs, model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False))
    assert answer(model, processor, samples) == expected
    assert len(set(expected)) > 1


def test_samples_are_spread_over_images_and_types():
    available = load_samples(TEST_FOLDER / QUESTIONS_FILE)
    chosen = spread(available, 40)
    assert chosen == spread(available, 40)
    assert chosen != spread(available, 40, seed=1)
    assert [spread(available, count) for count in (1, 7)] == [chosen[:1], chosen[:7]]
    assert len(set(chosen)) == 40
    assert set(Counter(sample.image for sample in chosen).values()) == {2}
    kinds = Counter(sample.type for sample in chosen)
    assert len(kinds) == len({sample.type for sample in available})
    assert len(spread(available, 10_000)) == len(available)
