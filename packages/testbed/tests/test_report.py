"""`testbed test`: an interrupted run goes on from the answers it has, and its results are those of one run."""

import json

import pytest

from visipruner.errors import ConfigError
from visipruner_testbed import evaluate, report
from visipruner_testbed.answerlog import AnswerLog
from visipruner_testbed.testset import load_test_set


@pytest.fixture
def scenes(excerpt):
    return excerpt(scenes=4, unseen_combinations=1, unseen_style=1, unseen_objects=1)


@pytest.fixture
def loaded(model, processor, monkeypatch):
    """The tiny model in place of the shipped one, whatever is asked for."""
    monkeypatch.setattr(report, "_model", lambda *asked: (model, processor))


def run(scenes, out, **changed):
    settings = {"limit": None, "batch_size": 4, "dtype": "float32", "attn": "sdpa", "image_size": 56, "blank": True}
    report.run_test([scenes], None, **{**settings, **changed}, others=[("float32", "eager")], json_file=out)


def test_an_interrupted_test_goes_on(scenes, loaded, tmp_path, monkeypatch):
    run(scenes, tmp_path / "whole.json")
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert {row["name"] for row in whole["rows"]} >= {"overall", "unseen-style"}
    assert whole["others"][0]["same_answer"] == 1.0
    pictures = []
    see = evaluate.see

    def seen_thrice(model, processor, picture):
        pictures.append(picture)
        if len(pictures) == 3:
            raise KeyboardInterrupt
        return see(model, processor, picture)

    monkeypatch.setattr(evaluate, "see", seen_thrice)
    with pytest.raises(KeyboardInterrupt):
        run(scenes, tmp_path / "twice.json")
    kept = tmp_path / "twice.unfinished.jsonl"
    with kept.open("a") as file:
        file.write('{"pass": "answer')  # cut off while it was written
    with pytest.raises(ConfigError, match="other settings"):
        run(scenes, tmp_path / "twice.json", batch_size=2)
    run(scenes, tmp_path / "twice.json")
    again = json.loads((tmp_path / "twice.json").read_text())
    assert not kept.exists()
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    # Seven pictures, the blank one and four scenes once more, less the two that were kept; the third was seen twice.
    assert len(pictures) == 7 + 1 + 4 + 1


def test_without_a_file_nothing_is_kept(scenes):
    log, samples = AnswerLog(None, {}), load_test_set(scenes)[:2]
    assert log.known("own", samples) is None
    log.note("own", samples, ["a", "b"])
    assert log.known("own", samples) == ["a", "b"]
    assert log.known("blank", samples) is None
    log.remove()


def test_answers_that_an_interruption_cut_off_are_given_again(tmp_path, scenes):
    path, samples = tmp_path / "log.jsonl", load_test_set(scenes)[:2]
    AnswerLog(path, {"batch": 1}).note("answering", samples, ["one\u2028two", "three"])
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write('{"pass": "猫'.encode()[:-1])  # within a character
    assert AnswerLog(path, {"batch": 1}).known("answering", samples) == ["one\u2028two", "three"]
    assert path.read_bytes() == whole
