"""Letters in answers; ScienceQA, SEED-Bench, MMBench, MMStar."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.benchmarks.folders import LETTER, answered, encoded, jsonl, official, picture, scores, tsv, write_json
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets import open_benchmark
from visipruner.evaluation.datasets.choices import letter, options_in

OPTIONS = {"A": "a red cat", "B": "Dog", "C": "2"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A", "A"),
        ("(A)", "A"),
        ("b", "B"),
        ("A.", "A"),
        ("B: Dog", "B"),
        ("[C] 2", "C"),
        ("The answer is B", "B"),
        ("The answer is B.\nBecause", "B"),
        ("the correct answer is option (C)", "C"),
        ("Answer: B", "B"),
        ("D", None),  # not offered
        ("A cat sits there", None),  # an article
        ("The answer is A dog", None),
        ("the answer is a dog", None),
        ("dog", "B"),
        ("Red cat.", "A"),
        ("two", "C"),
        ("", None),
        ("Both", None),
    ],
)
def test_letters(answer: str, expected: str | None) -> None:
    assert letter(answer, OPTIONS) == expected


def test_options_come_from_the_prompt() -> None:
    assert options_in("Which?\nA. one\nB. two. three" + LETTER) == {"A": "one", "B": "two. three"}


def test_scienceqa_asks_the_questions_with_images(tmp_path: Path) -> None:
    problems = {
        "3": {"answer": 1, "choices": ["x", "y"], "subject": "natural science"},
        "4": {"answer": 0, "choices": ["x", "y"], "subject": "social science"},
        "7": {"answer": 0, "choices": ["x", "y"], "subject": "social science"},
    }
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": ["3", "4"], "val": ["7"]})
    text = "Which?\nContext: N/A\nA. x\nB. y"
    asked = [
        {"id": "3", "image": "3/image.png", "conversations": [{"from": "human", "value": f"<image>\n{text}"}]},
        {"id": "4", "conversations": [{"from": "human", "value": text}]},
        {"id": "7", "image": "7/image.png", "conversations": [{"from": "human", "value": text}]},
    ]
    write_json(tmp_path / "llava_test_CQM-A.json", asked)
    picture(tmp_path / "images" / "test" / "3" / "image.png")
    found = open_benchmark(tmp_path)
    assert [sample.question for sample in found.samples] == [text + LETTER]
    assert found.notes == ["1 questions without an image are not asked."]
    assert scores(found, ["B. y"]) == [1]
    assert scores(found, ["E"]) == [0]


def test_options_on_one_line_as_llava_converts_scienceqa() -> None:
    text = "Context: F. Bacon\nQuestion: Which (A) is it?\nOptions: (A) a dog (B) x (y) (C) c (D) d (E) the last one\n"
    options = options_in(text + LETTER)
    assert options == {"A": "a dog", "B": "x (y)", "C": "c", "D": "d", "E": "the last one"}
    assert [letter(answer, options) for answer in ("E", "(e)", "The last one.", "F")] == ["E", "E", "E", None]


def _seed(folder: Path) -> Path:
    questions, asked = [], []
    for number, (medium, kind) in enumerate((("image", 1), ("image", 5), ("video", 10))):
        name = "SEED-Bench-image/17_42" if medium == "image" else "SEED-Bench-video-image/9.png"
        truth = {"question_id": str(number), "answer": "A", "question_type_id": kind, "data_type": medium}
        questions.append(truth)
        asked.append({"question_id": number, "image": name, "text": "Which?\nA. one\nB. two" + LETTER})
    types = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    write_json(folder / "SEED-Bench.json", {"question_type": types, "questions": questions})
    jsonl(folder / "llava-seed-bench.jsonl", asked)
    picture(folder / "SEED-Bench-image" / "17_42")
    return folder


def test_seed_bench(tmp_path: Path) -> None:
    folder = _seed(tmp_path)
    images = open_benchmark(folder)
    assert len(images.samples) == 2
    assert "1 questions about videos are not asked" in images.notes[0]
    picture(folder / "SEED-Bench-video-image" / "9.png")
    found = open_benchmark(folder)
    told = official(found, ["A", "B", "A"])
    assert told["scores"] == pytest.approx({"all": 200 / 3, "image": 50, "video": 100})
    assert told["parts"]["Instances Counting"] == {"accuracy": 0}


def _mmbench(folder: Path, *, public: bool = True, name: str = "mmbench_dev_20230712.tsv") -> Path:
    """Question 1 in three rotations, question 2 with two options in two, question 3 alone with its image elsewhere."""
    row = {"hint": "nan", "category": "color", "source": "x", "l2-category": "y", "comment": "", "split": "dev"}
    asked = [
        (1, ("red", "blue", "lime"), "A", encoded("red")),
        (1000001, ("blue", "lime", "red"), "C", "1"),
        (2000001, ("lime", "red", "blue"), "B", "1"),
        (2, ("yes", "no", ""), "B", encoded("blue")),
        (1000002, ("no", "yes", ""), "A", encoded("blue")),
    ]
    rows = []
    for index, options, answer, image in asked:
        letters = dict(zip("ABC", options, strict=True))
        truth = {"answer": answer} if public else {}
        rows.append({"index": index, "question": 'Which "one"?', **letters, "D": "", **row, **truth, "image": image})
    rows[3]["hint"] = "Look.\nWell."
    rows[3]["category"] = rows[4]["category"] = "logic"
    return tsv(folder / name, rows).parent


def test_mmbench(tmp_path: Path) -> None:
    found = open_benchmark(_mmbench(tmp_path), images=tmp_path / "images")
    first, _, _, fourth, _ = found.samples
    assert first.question == 'Which "one"?\nA. red\nB. blue\nC. lime' + LETTER
    assert fourth.question.startswith('Look.\nWell.\nWhich "one"?\nA. yes\nB. no\nAnswer')
    assert [len({one.image_name for one in part}) for part in (found.samples[:3], found.samples[3:])] == [1, 1]
    assert not (tmp_path / "images").exists()  # decoded when asked for
    found.prepare(found.samples[:1])
    assert [path.name for path in (tmp_path / "images").iterdir()] == [first.image_name]
    assert Image.open(first.image).getpixel((0, 0)) == (255, 0, 0)
    told = official(found, ["(A)", "red", "C", "B", "no"])
    assert told["scores"] == {"vanilla": 100, "circular": 50}
    assert told["parts"] == {"color": {"vanilla": 100, "circular": 0}, "logic": {"vanilla": 100, "circular": 100}}
    assert {sample.id for sample in found.choose(2, 0)} in ({"2", "1000002"}, {"1", "1000001", "2000001"})
    part = answered(found, ["A", "C", "B", "A", "A"])[:2]  # not all rotations: no CircularEval
    assert found.official(part, "dense")["scores"] == {"vanilla": 100}


def test_the_same_image_is_one_file_in_any_table_and_folder(tmp_path: Path) -> None:
    """So the rotations of a question are resampled together, and no table finds another's image."""
    found = open_benchmark(_mmbench(tmp_path / "bench"), images=tmp_path / "images")
    found.prepare(found.samples)
    records = answered(found, ["A", "C", "B", "A", "A"])
    assert [record["image"] for record in records[3:]] == [records[3]["image"]] * 2
    row = {"index": "1", "question": "Which?", "answer": "A", "category": "math"}
    table = tsv(tmp_path / "MMStar.tsv", [{**row, "image": encoded("lime")}, {**row, "index": 2, "image": "1"}])
    for images in (tmp_path / "images", tmp_path / "other", None):
        other = open_benchmark(table, images=images)
        other.prepare(other.samples)
        assert Image.open(other.samples[0].image).getpixel((0, 0)) == (0, 255, 0)
        assert {sample.image_name for sample in other.samples} == {other.samples[0].image.name}
        assert other.samples[0].image_name == open_benchmark(table).samples[0].image_name


def test_an_image_that_is_not_base64(tmp_path: Path) -> None:
    row = {"index": "7", "question": "Which?", "answer": "A", "category": "math", "image": "#" * 80}
    found = open_benchmark(tsv(tmp_path / "MMStar.tsv", [row]))
    with pytest.raises(ConfigError, match="image of row 7 is not base64"):
        found.prepare(found.samples)


def test_mmbench_in_chinese_and_several_tables(tmp_path: Path) -> None:
    _mmbench(tmp_path)
    folder = _mmbench(tmp_path, name="mmbench_dev_cn_20231003.tsv")
    with pytest.raises(ConfigError, match=r"several question files \(mmbench_dev_2.*give one of them: --data"):
        open_benchmark(folder)
    found = open_benchmark(folder / "mmbench_dev_cn_20231003.tsv")
    assert found.samples[0].question.endswith("\n请直接回答选项字母。")
    found.prepare(found.samples)
    assert all(sample.image.exists() for sample in found.samples)


def test_mmbench_test_goes_to_the_server(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    found = open_benchmark(_mmbench(tmp_path, public=False, name="mmbench_test_20230712.tsv"))
    assert "OpenCompass" in found.server
    records = answered(found, ["A", "B", "C", "A", "B"])
    assert found.scores(records, "dense") == []
    path = found.submission(records, "dense", tmp_path / "out" / "mmbench")
    header, first, *rest = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "C", "D", "prediction", "split")
    assert first == (1, 'Which "one"?', "red", "blue", "lime", None, "A", "dev")
    assert len(rest) == 4


def test_a_spreadsheet_holds_what_was_said_as_text(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    found = open_benchmark(_mmbench(tmp_path, public=False))
    records = answered(found, ["=1+1", "A\x0b\x1f", "#N/A", "\x00", "7"])
    sheet = openpyxl.load_workbook(found.submission(records, "dense", tmp_path / "mmbench")).active
    given = [row[6] for row in sheet.iter_rows(min_row=2)]
    assert [cell.value for cell in given] == ["=1+1", "A", "#N/A", None, "7"]
    assert [cell.data_type for cell in given if cell.value] == ["s"] * 4


def test_mmbench_without_the_spreadsheet_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"pip install 'visipruner\[mmbench\]'"):
        open_benchmark(_mmbench(tmp_path, public=False))


@pytest.mark.parametrize("has_columns", [False, True])
def test_mmstar(tmp_path: Path, has_columns: bool) -> None:
    inline = "" if has_columns else "\nOptions: A: red, B: blue, C: lime, D: gray"
    options = {"A": "red", "B": "blue", "C": "lime", "D": "gray"} if has_columns else {}
    rows = [
        {
            "index": n,
            "question": f"Which?{inline}",
            **options,
            "answer": answer,
            "category": kind,
            "image": encoded("red"),
        }
        for n, (answer, kind) in enumerate((("A", "math"), ("B", "math"), ("D", "logical reasoning")))
    ]
    tsv(tmp_path / "MMStar.tsv", rows)
    found = open_benchmark(tmp_path)
    told = official(found, ["A", "(D)", "D."])
    assert told["parts"] == {"math": {"accuracy": 50}, "logical reasoning": {"accuracy": 100}}
    assert told["scores"] == {"mean of categories": 75}
    assert scores(found, ["red", "b", "D"]) == [float(has_columns), 1, 1]


def test_mmstar_in_parquet(tmp_path: Path) -> None:
    (tmp_path / "mmstar.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"parquet is not read; put VLMEvalKit's MMStar\.tsv"):
        open_benchmark(tmp_path)
