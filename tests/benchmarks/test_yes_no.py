"""POPE, MME and GQA: official scores on answers whose numbers were worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.folders import SHORT, jsonl, official, picture, pope_folder, scores, write_json
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets import mme, open_benchmark, pope


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("No, there is none", "no"),
        ("There is not, I think", "no"),
        ("no", "no"),
        ("It is there. No doubt", "yes"),  # the first sentence only
        ("NO", "yes"),  # official: No, no and not alone are negative
        ("Nothing", "yes"),
        ("Yes, not small", "no"),
    ],
)
def test_pope_reads_answers(answer: str, expected: str) -> None:
    assert pope.yes_or_no(answer) == expected


@pytest.mark.parametrize("doubled", [False, True])
def test_pope(tmp_path: Path, doubled: bool) -> None:
    found = open_benchmark(pope_folder(tmp_path, doubled))
    assert [sample.answers[0] for sample in found.samples] == ["yes", "no"] * 3
    assert len({sample.id for sample in found.samples}) == 6
    answers = ["Yes", "No", "Yes", "Yes", "No", "no"]
    assert scores(found, answers) == [1, 1, 1, 0, 0, 1]
    told = official(found, answers)
    assert told["parts"]["random"] == {"accuracy": 100, "precision": 100, "recall": 100, "f1": 100, "yes_ratio": 50}
    popular = told["parts"]["popular"]
    assert popular == pytest.approx({"accuracy": 50, "precision": 50, "recall": 100, "f1": 200 / 3, "yes_ratio": 100})
    adversarial = told["parts"]["adversarial"]
    assert adversarial == {"accuracy": 50, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert told["scores"]["F1 mean"] == pytest.approx((100 + 200 / 3) / 3)


def test_pope_of_two_versions(tmp_path: Path) -> None:
    folder = pope_folder(tmp_path)
    jsonl(folder / "coco" / "coco_pope_random.json", [{"image": "x.jpg", "text": "?", "label": "no"}])
    with pytest.raises(ConfigError, match="not of the same version"):
        open_benchmark(folder)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        (" Yes, it is", "yes"),
        ("It is not", "other"),
        ("Not at all", "no"),
        ("", "other"),
    ],
)
def test_mme_reads_the_first_four_characters(answer: str, expected: str) -> None:
    assert mme.yes_or_no(answer) == expected


def _mme(folder: Path, inner: str = "") -> Path:
    """One image beside its text file, one with folders of their own, two of a cognition category."""
    release = folder / "MME_Benchmark_release_version" / inner
    lines = []
    for category, stem, nested in (
        ("count", "000001", False),
        ("posters", "tt01", True),
        ("code_reasoning", "0001", False),
        ("code_reasoning", "0002", False),
    ):
        image = release / category / ("images" if nested else "") / f"{stem}.png"
        picture(image)
        text = release / category / ("questions_answers_YN" if nested else "") / f"{stem}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text(
            "Is it red? Please answer yes or no.\tYes\nIs it  blue?  Please answer yes or no.\tNo\n", encoding="utf-8"
        )
        for question in ("Is it red?", "Is it blue?"):
            name = f"{category}/{stem}.png"
            asked = f"{question} Please answer yes or no.{SHORT}"
            lines.append({"question_id": name, "image": name, "text": asked, "category": category})
    jsonl(folder / "llava_mme.jsonl", lines)
    return folder


@pytest.mark.parametrize("inner", ["", "MME_Benchmark"])
def test_mme(tmp_path: Path, inner: str) -> None:
    found = open_benchmark(_mme(tmp_path, inner))
    assert [sample.answers[0] for sample in found.samples] == ["yes", "no"] * 4
    assert "images" in found.samples[2].image.parts
    told = official(found, ["Yes", "No", "Yes", "Yes", "Yes", "No", "No", "Perhaps"])
    assert told["parts"]["count"] == {"accuracy": 100, "accuracy+": 100, "score": 200}
    assert told["parts"]["posters"] == {"accuracy": 50, "accuracy+": 0, "score": 50}
    assert told["parts"]["code_reasoning"] == {"accuracy": 50, "accuracy+": 50, "score": 100}
    assert told["scores"] == {"perception": 250, "cognition": 100, "total": 350}
    chosen = found.choose(5, seed=0)
    assert len(chosen) == 4  # whole pairs
    assert len({sample.image for sample in chosen}) == 2


def test_mme_without_a_text_file(tmp_path: Path) -> None:
    folder = _mme(tmp_path)
    (folder / "MME_Benchmark_release_version" / "count" / "000001.txt").unlink()
    with pytest.raises(ConfigError, match=r"MME is incomplete: .*count has no answer to 'Is it red\?', 000001"):
        open_benchmark(folder)


def test_gqa(tmp_path: Path) -> None:
    lines = [{"question_id": str(n), "image": f"n{n}.jpg", "text": "what?" + SHORT} for n in range(4)]
    truths = [("cat", "query"), ("yes", "verify"), ("left", "choose"), ("table", "query")]
    jsonl(tmp_path / "llava_gqa_testdev_balanced.jsonl", lines)
    gold = {
        str(n): {"answer": answer, "types": {"structural": kind}, "imageId": f"n{n}"}
        for n, (answer, kind) in enumerate(truths)
    }
    write_json(tmp_path / "data" / "testdev_balanced_questions.json", gold)
    for n in range(4):
        picture(tmp_path / "data" / "images" / f"n{n}.jpg")
    found = open_benchmark(tmp_path)
    answers = ["Cat.", "Yes", "right", "a table"]  # exact match: the article counts
    assert scores(found, answers) == [1, 1, 0, 0]
    assert official(found, answers)["scores"] == {"accuracy": 50, "binary": 50, "open": 50}
    (tmp_path / "data" / "images" / "n3.jpg").unlink()
    with pytest.raises(ConfigError, match=r"1 of its images are missing, the first is .*n3\.jpg"):
        open_benchmark(tmp_path)
