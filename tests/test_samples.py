"""Data files: what is read, what is refused, how samples are spread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.reading import read_jsonl
from visipruner.evaluation.samples import Sample, load_samples


def _write(folder: Path, *lines: object) -> Path:
    (folder / "a.png").write_bytes(b"")
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_answers_and_types_are_optional(tmp_path: Path) -> None:
    base = {"image": "a.png", "question": "What?"}
    path = _write(tmp_path, base, "", {**base, "answer": "cat", "type": "name"}, {**base, "answers": ["cat", "tom"]})
    first, second, third = load_samples(path)
    assert first == Sample(tmp_path / "a.png", "What?", name="a.png")
    assert (second.answers, second.type) == (("cat",), "name")
    assert third.answers == ("cat", "tom")


def test_only_a_newline_ends_a_line(tmp_path: Path) -> None:
    question = "one\u2028two\u2029three\u0085four"
    line = json.dumps({"image": "a.png", "question": question}, ensure_ascii=False)
    assert [sample.question for sample in load_samples(_write(tmp_path, line, line))] == [question] * 2
    assert [record["question"] for record in read_jsonl(_write(tmp_path, line, line))] == [question] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ({"image": "a.png"}, 'needs texts "image" and "question"'),
        ({"image": "a.png", "question": "?", "answers": [1]}, "must be a text or a list of texts"),
        ({"image": "b.png", "question": "?"}, "there is no image"),
        ("", "holds no samples"),
    ],
)
def test_bad_lines_are_named(line: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_samples(_write(tmp_path, line))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_samples(tmp_path)
