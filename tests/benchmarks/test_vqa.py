"""The challenge's normalisation and soft accuracy, and the folders of TextVQA, VQA v2 and VizWiz."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.folders import SHORT, answered, jsonl, picture, scores, write_json
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets import open_benchmark
from visipruner.evaluation.datasets.vqa import normalize_answer, normalize_reference, soft_accuracy


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("The Cat", "cat"),
        ("a dog and an apple", "dog and apple"),
        ("two", "2"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("y'alld've", "y'all'd've"),
        ("oclock", "o'clock"),
        ("women's", "women 's"),
        ("1,000", "1000"),
        ("red, white", "red white"),
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("3.5", "3.5"),
        ("dr. pepper.", "dr pepper"),
        ("no.\n", "no"),
        ("up\tto\n", "up to"),
    ],
)
def test_answers_are_normalised_as_the_challenge_does(given: str, expected: str) -> None:
    assert normalize_answer(given) == expected


def test_vqa_v2_cuts_less_before() -> None:
    assert normalize_reference("women's") == "women's"
    assert normalize_reference("1,000 - 2") == "1000 2"
    assert normalize_reference("black,white") == "black white"


def test_soft_accuracy_leaves_each_person_out() -> None:
    def of(same: int) -> float:
        return soft_accuracy("x", ["x"] * same + ["y"] * (10 - same))

    # With n of ten alike: n times (n - 1) / 3 and 10 - n times n / 3, both at most 1, averaged.
    assert of(0) == 0
    assert of(1) == pytest.approx((1 * 0 + 9 * 1 / 3) / 10)
    assert of(2) == pytest.approx(0.6)
    assert of(3) == pytest.approx(0.9)
    assert of(4) == of(10) == 1


def _textvqa(folder: Path) -> Path:
    data = [
        {"image_id": "a1", "question": "What brand?", "answers": ["Nike"] * 3 + ["the nike", "adidas"] + ["puma"] * 5},
        {"image_id": "a1", "question": "How many?", "answers": ["2"] * 2 + ["two"] + ["3"] * 7},
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": data})
    hint = "\nReference OCR token: NIKE, AIR"
    lines = [
        {"question_id": "a1", "image": "a1.jpg", "text": "what brand?" + hint + SHORT},
        {"question_id": "a1", "image": "a1.jpg", "text": hint.strip() + "\nhow many?" + SHORT},
    ]
    picture(folder / "train_images" / "a1.jpg")
    jsonl(folder / "llava_textvqa_val_v051_ocr.jsonl", lines)
    return folder


def test_textvqa(tmp_path: Path) -> None:
    found = open_benchmark(_textvqa(tmp_path))
    assert found.name == "textvqa"
    assert [sample.id for sample in found.samples] == ["a1/1", "a1/2"]
    assert len(found.samples[0].answers) == 10
    assert found.samples[0].question.endswith(SHORT)
    assert scores(found, ["NIKE.", "Two"]) == pytest.approx([1.0, 0.9])  # 4 and 3 of ten, after normalising
    assert scores(found, ["adidas", "four"]) == pytest.approx([0.3, 0.0])


def test_textvqa_of_another_version(tmp_path: Path) -> None:
    folder = _textvqa(tmp_path)
    write_json(folder / "TextVQA_0.5.1_val.json", {"data": []})
    with pytest.raises(ConfigError, match="no answers to 'what brand\\?' about a1"):
        open_benchmark(folder)
    (folder / "TextVQA_0.5.1_val.json").unlink()
    with pytest.raises(ConfigError, match=r"TextVQA is incomplete: there is no .*TextVQA_0\.5\.1_val\.json"):
        open_benchmark(folder)


def test_vqa_v2_test_goes_to_the_server(tmp_path: Path) -> None:
    lines = [{"question_id": n, "image": f"{n}.jpg", "text": "what?" + SHORT} for n in (11, 12)]
    picture(tmp_path / "test2015" / "11.jpg")
    picture(tmp_path / "test2015" / "12.jpg")
    jsonl(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", lines)
    alone = open_benchmark(tmp_path)
    assert "server wants all" in alone.notes[0]
    jsonl(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [*lines, {**lines[0], "question_id": 99}])
    found = open_benchmark(tmp_path)
    assert (found.name, found.notes) == ("vqav2", [])
    records = answered(found, ["A Cat.", "two"])
    assert found.scores(records, "dense") == []
    assert found.official(records, "dense") == {}
    path = found.submission(records, "dense", tmp_path / "out" / "vqa")
    assert path is not None
    assert json.loads(path.read_text()) == [
        {"question_id": 11, "answer": "cat"},
        {"question_id": 12, "answer": "2"},
        {"question_id": 99, "answer": ""},
    ]


def test_vqa_v2_validation_is_scored_here(tmp_path: Path) -> None:
    picture(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg")
    said = {1: ["two"] * 10, 2: ["two"] * 2 + ["2"] * 8, 3: ["yes"] * 10, 4: ["2"] * 10}
    questions = [{"question_id": n, "image_id": 42, "question": "How?"} for n in said]
    annotations = [
        {"question_id": n, "answer_type": "number", "answers": [{"answer": answer} for answer in answers]}
        for n, answers in said.items()
    ]
    write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    found = open_benchmark(tmp_path)
    assert found.server == ""
    assert found.samples[0].question == "How?" + SHORT
    assert scores(found, ["two", "two", "Yes", "Two"]) == [0, 1, 1, 1]  # where all agree their answer is as it is
    assert scores(found, ["2", "2", "no", "3"]) == [0, 1, 0, 0]
    submitted = ["2", "2", "yes", "2"]
    assert scores(found, submitted) == scores(found, ["The two.", "Two", "Yes.", "a two"])  # as at the server
    assert found.submission(answered(found, submitted), "dense", tmp_path / "x") is None


def test_vizwiz(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "VizWiz_test_0.jpg")
    picture(tmp_path / "val" / "VizWiz_val_0.jpg")
    line = {"question_id": "VizWiz_test_0.jpg", "image": "VizWiz_test_0.jpg", "text": "what is this?" + SHORT}
    jsonl(tmp_path / "llava_test.jsonl", [line])
    people = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 2 + [{"answer": "a mug"}] * 8
    write_json(tmp_path / "val.json", [{"image": "VizWiz_val_0.jpg", "question": "What?", "answers": people}])
    test = open_benchmark(tmp_path)
    path = test.submission(answered(test, ["The mug."]), "dense", tmp_path / "out")
    assert path is not None
    assert json.loads(path.read_text()) == [{"image": "VizWiz_test_0.jpg", "answer": "mug"}]
    validation = open_benchmark(tmp_path / "val.json")
    assert "respond with 'Unanswerable'" in validation.samples[0].question
    assert scores(validation, ["Unanswerable"]) == pytest.approx([0.6])
    assert scores(validation, ["mug"]) == [1]
