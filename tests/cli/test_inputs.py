"""Pictures, questions, settings and files as they should not be: refused at once, with words, or taken as they are."""

import json
import os
import subprocess
import sys
import threading
import warnings

import pytest
from PIL import Image

from visipruner.asking import overlay
from visipruner.files import held
from visipruner.models import loading

QUESTION = "what is this ?"


@pytest.fixture
def pairs(tmp_path, photo):
    """`pairs(line, ...)`: a JSONL file; a text stands for a question about the photo."""

    def written(*lines):
        path = tmp_path / "pairs.jsonl"
        records = [line if isinstance(line, dict) else {"question": line} for line in lines]
        path.write_text("".join(json.dumps({"image": photo.name, **record}) + "\n" for record in records))
        return path

    return written


@pytest.fixture
def asks_nothing(monkeypatch):
    """Fails the test as soon as a model is asked."""
    for place in ("visipruner.asking.answered.greedy_reply", "visipruner.evaluation.runner.greedy_reply"):
        monkeypatch.setattr(place, lambda *_: pytest.fail("asked the model"))


@pytest.mark.parametrize("shape", [(41, 1), (1, 99)])
def test_strips_are_drawn(cli, llava_folder, tmp_path, shape):
    path, out = tmp_path / "strip.png", tmp_path / "out"
    Image.effect_noise((20 * shape[0], 20 * shape[1]), 90).save(path)
    result = cli("run", path, "-q", QUESTION, "--model", llava_folder, "--max-new-tokens", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert min(Image.open(out / "1-strip-q1.png").size) > 20


def test_an_answer_is_saved_before_it_is_drawn(cli, llava_folder, photo, tmp_path, monkeypatch):
    def fails(*_):
        raise ZeroDivisionError("no picture today")

    monkeypatch.setattr(overlay, "draw", fails)
    out = tmp_path / "out"
    result = cli("run", photo, "-q", QUESTION, "--model", llava_folder, "--max-new-tokens", 1, "--out", out)
    assert result.exit_code == 1
    [answer] = json.loads((out / "results.json").read_text())["answers"]
    assert answer["question"] == QUESTION


@pytest.mark.parametrize("sign", ["<image>", "</s>"])
def test_the_models_own_signs_are_refused_before_anything_is_asked(
    fails, llava_folder, photo, pairs, asks_nothing, sign
):
    said = fails("run", photo, "-q", f"what is {sign} ?", "--model", llava_folder)
    assert f"holds '{sign}'" in said
    data = pairs(QUESTION, f"what is {sign} ?")
    for command in ("eval", "analyze"):
        more = ["--out", data.parent / "out"] if command == "analyze" else []
        result = fails(command, "--data", data, "--model", llava_folder, *more)
        assert f"pairs.jsonl, line 2: the question holds '{sign}'" in result


def test_questions_without_a_word_or_with_half_a_letter(fails, llava_folder, photo, pairs, asks_nothing):
    assert "half a character" in fails("run", photo, "-q", "what \udcff", "--model", llava_folder)
    for question, told in (("  ", "line 2: the question is empty"), ("what \ud800", "line 2: the question holds half")):
        assert told in fails("eval", "--data", pairs(QUESTION, question), "--model", llava_folder)


def test_data_files(cli, fails, llava_folder, pairs, tmp_path):
    path = pairs(QUESTION)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    arguments = ["eval", "--data", path, "--model", llava_folder, "--method", "random", "--max-new-tokens", 1]
    assert cli(*arguments).exit_code == 0
    said = fails("eval", "--data", pairs({"question": QUESTION, "answer": None}), "--model", llava_folder)
    assert 'line 1: "answer" must be a text or a list of texts, not null; leave it out' in said


def test_a_damaged_line_is_named(cli, fails, llava_folder, pairs, tmp_path):
    out = tmp_path / "out"
    arguments = ["eval", "--data", pairs(QUESTION, "where is the cat ?"), "--model", llava_folder, "--method", "random"]
    arguments += ["--max-new-tokens", 1, "--out", out]
    assert cli(*arguments).exit_code == 0
    first, second = (out / "samples.jsonl").read_bytes().splitlines(keepends=True)
    for damaged in (first[:40] + b"\n", b"\xff" + first):
        (out / "samples.jsonl").write_bytes(damaged + second)
        result = cli(*arguments)
        assert result.exit_code == 1
        assert "samples.jsonl, line 1 is damaged" in result.stderr
        assert "Unexpected" not in result.stderr


@pytest.mark.parametrize("command", ["eval", "run"])
def test_one_process_writes_to_a_folder(cli, llava_folder, pairs, photo, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    what = ["--data", pairs(QUESTION)] if command == "eval" else [photo, "-q", QUESTION]
    arguments = [command, *what, "--model", llava_folder, "--max-new-tokens", 1, "--out", out]
    with held(out):
        result = cli(*arguments)
    assert result.exit_code == 1
    assert "Another process is writing to" in result.stderr
    assert list(out.iterdir()) == []
    assert cli(*arguments).exit_code == 0


def test_a_picture_through_a_pipe(cli, llava_folder, photo, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(photo.read_bytes()))
    writer.start()
    result = cli("run", pipe, "-q", QUESTION, "-q", "where is the cat ?", "--model", llava_folder, "--json")
    writer.join()
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["answers"]) == 2


def test_a_huge_picture_brings_no_warning_of_a_library(cli, llava_folder, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 120 * 80 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cli("run", photo, "-q", QUESTION, "--model", llava_folder, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.stderr


def test_a_warning_is_a_sentence(cli, llava_folder, photo, monkeypatch):
    def loaded(*_, **__):
        warnings.warn("Something is odd.", stacklevel=1)
        raise loading.LoadError("That is all.")

    monkeypatch.setattr(loading, "load", loaded)
    result = cli("run", photo, "-q", QUESTION, "--model", llava_folder)
    assert result.stderr.splitlines() == ["visipruner: warning: Something is odd.", "visipruner: That is all."]


def test_settings_that_no_method_has(fails, llava_folder, photo):
    common = ["run", photo, "-q", QUESTION, "--model", llava_folder]
    for arguments in (["--set", "name=x"], ["--method", "random:name=x"]):
        assert "no setting 'name'" in fails(*common, *arguments)
    said = fails(*common, "--set", "filter_threshold=high")
    assert "visipruner: visipruner" not in said


def test_brackets_without_end(fails, llava_folder, photo, tmp_path):
    deep = "[" * 100_000
    (tmp_path / "pruner.json").write_text(deep)
    (tmp_path / "pairs.jsonl").write_text(deep)
    common = ["run", photo, "-q", QUESTION, "--model", llava_folder]
    assert "not a pruner.json" in fails(*common, "--config", tmp_path)
    assert len(fails(*common, "--set", f"stages={deep}")) < 300
    assert "line 1 is not JSON" in fails("eval", "--data", tmp_path / "pairs.jsonl", "--model", llava_folder)


def test_a_file_name_that_is_no_text(llava_folder, photo, tmp_path):
    named, out = os.fsencode(tmp_path) + b"/caf\xe9.png", tmp_path / "out"
    os.rename(photo, named)
    command = [sys.executable, "-m", "visipruner", "run", named, "-q", QUESTION, "--model", str(llava_folder)]
    for more in ([], ["--json"]):
        done = subprocess.run([*command, "--max-new-tokens", "1", "--out", str(out), *more], capture_output=True)
        assert done.returncode == 0, done.stderr
        assert b"caf" in done.stdout
    [answer] = json.loads((out / "results.json").read_text())["answers"]
    assert os.fsencode(answer["image"]) == named


def test_a_long_question_is_not_echoed_whole(cli, llava_folder, photo):
    result = cli("run", photo, "-q", "cat " * 20, "-q", "dog " * 90, "--model", llava_folder, "--max-new-tokens", 1)
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    assert shown.count("cat") == 20
    assert shown.count("dog") < 90
    assert "(90 words)" in shown


@pytest.mark.parametrize("variable", ["HOME", "VISIPRUNER_CACHE"])
def test_a_place_where_no_model_can_be_put(variable, photo, tmp_path):
    (tmp_path / "file").touch()
    environment = {**os.environ, "VISIPRUNER_CACHE": "", "XDG_CACHE_HOME": ""}
    environment[variable] = {"HOME": "/proc/nope", "VISIPRUNER_CACHE": str(tmp_path / "file")}[variable]
    command = [sys.executable, "-m", "visipruner", "run", str(photo), "-q", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "name another folder: VISIPRUNER_CACHE=DIR" in done.stderr.splitlines()[-1]
