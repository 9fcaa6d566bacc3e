"""Folders are recognised, or it is said why not; MM-Vet and easy-VQA."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from tests.benchmarks.folders import answered, jsonl, picture, pope_folder, scores, tsv, write_json
from visipruner.cli.app import app
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets import names, open_benchmark, recognises, registry


def test_a_folder_or_a_file_is_recognised(tmp_path: Path) -> None:
    folder = pope_folder(tmp_path / "pope")
    for path in (folder, folder / "llava_pope_test.jsonl"):
        assert recognises(path)
        assert open_benchmark(path).name == "pope"
    assert recognises(Path("easy-vqa"))
    assert not recognises(tmp_path / "pairs.jsonl")
    jsonl(tmp_path / "pairs.jsonl", [{}])
    assert not recognises(tmp_path / "pairs.jsonl")
    renamed = (folder / "llava_pope_test.jsonl").rename(folder / "mine.jsonl")
    assert open_benchmark(renamed, "pope").samples[0].answers == ("yes",)


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no benchmark that is known; looked for llava_gqa.*\(gqa\), .*seed"):
        open_benchmark(tmp_path)
    pope = pope_folder(tmp_path / "pope")
    with pytest.raises(ConfigError, match=r"holds benchmarks in folders; give one of them: --data .*pope"):
        open_benchmark(tmp_path)
    with pytest.raises(ConfigError, match=r"is not GQA's: there is no llava_gqa_testdev_balanced"):
        open_benchmark(pope, "gqa")
    with pytest.raises(ConfigError, match=r"no benchmark 'popee'. Did you mean 'pope'"):
        open_benchmark(pope, "popee")
    with pytest.raises(ConfigError, match="say which it is: --benchmark NAME"):
        open_benchmark(pope / "coco" / "coco_pope_random.json")
    with pytest.raises(ConfigError, match=r"There is no .*nowhere; --data takes"):
        open_benchmark(tmp_path / "nowhere")
    (pope / "coco" / "coco_pope_popular.json").unlink()
    with pytest.raises(ConfigError, match=r"POPE is incomplete: there is no .*coco_pope_popular\.json"):
        open_benchmark(pope)
    (pope / "val2014").rename(pope / "train2014")
    with pytest.raises(ConfigError, match=r"POPE is incomplete: there is no .*val2014"):
        open_benchmark(pope)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "line 1 is not JSON"), ('{"image": "x"}', "line 1 has no question_id, text"), ("", "holds no questions")],
)
def test_broken_question_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test2015").mkdir()
    (tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        open_benchmark(tmp_path)


def test_answers_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    (tmp_path / "llava_textvqa_val_v051_ocr.jsonl").write_text("{}")
    write_json(tmp_path / "TextVQA_0.5.1_val.json", {"questions": []})
    with pytest.raises(ConfigError, match="its top level has no data; is it the file"):
        open_benchmark(tmp_path)


def test_a_table_of_something_else(tmp_path: Path) -> None:
    tsv(tmp_path / "MMStar.tsv", [{"index": 1, "question": "?"}])
    with pytest.raises(ConfigError, match="has no column answer, category, image"):
        open_benchmark(tmp_path)


def test_mm_vet_goes_to_the_judge(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "v1_0.png")
    jsonl(tmp_path / "llava-mm-vet.jsonl", [{"question_id": 0, "image": "v1_0.png", "text": "What is x?"}])
    write_json(tmp_path / "mm-vet.json", {"v1_0": {"answer": "-1<AND>-5", "capability": ["ocr", "math"]}})
    found = open_benchmark(tmp_path)
    assert found.samples[0].type == "math+ocr"
    records = answered(found, ["x is -1"])
    assert found.scores(records, "dense") == []
    path = found.submission(records, "dense", tmp_path / "out" / "mmvet")
    assert path is not None
    assert json.loads(path.read_text()) == {"v1_0": "x is -1"}


def test_easy_vqa_from_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "0.png")
    package = ModuleType("easy_vqa")
    package.__file__ = str(tmp_path / "__init__.py")
    asked = (["what shape?", "is it red?", "what color?"], ["circle", "no", "red"], [0, 0, 0])
    monkeypatch.setattr(package, "get_test_questions", lambda: asked, raising=False)
    monkeypatch.setattr(package, "get_test_image_paths", lambda: {0: str(tmp_path / "0.png")}, raising=False)
    monkeypatch.setitem(sys.modules, "easy_vqa", package)
    found = open_benchmark(Path("easy-vqa"))
    assert [sample.type for sample in found.samples] == ["shape", "yes or no", "color"]
    assert scores(found, ["A circle.", "No", "blue"]) == [1, 1, 0]
    assert scores(found, ["The red shape is a circle", "yes and no", "The circle is red."]) == [1, 0, 1]
    assert scores(found, ["a circle or a triangle", "there is no red", ""]) == [0, 1, 0]


def test_easy_vqa_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ConfigError, match=r"pip install 'visipruner\[easy-vqa\]'"):
        open_benchmark(Path("easy-vqa"))


def test_the_list_names_every_benchmark() -> None:
    shown = CliRunner().invoke(app, ["list"]).stdout
    assert all(f"{name} " in shown for name in names())


def test_the_page_names_every_benchmark_and_its_file() -> None:
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    text = page.read_text(encoding="utf-8")
    for kind in registry.kinds():
        assert f"`{kind.name}`" in text
        for pattern in kind.patterns[:1]:
            assert pattern.replace("MMStar*", "MMStar") in text
