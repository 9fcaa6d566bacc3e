"""Whatever goes wrong: one sentence that says what to do, no traceback, exit code not 0."""

import errno
import json
import shutil

import pytest
from PIL import Image

from tests.cli.tiny_llava import save_llava
from visipruner import files
from visipruner.asking import answered as asking
from visipruner.cli.errors import explain
from visipruner.models import loading as models


@pytest.fixture
def run_fails(fails, llava_folder, photo):
    def invoke(*arguments, model=llava_folder, image=photo, code=1):
        return fails("run", image, "-q", "what is this ?", "--model", model, *arguments, code=code)

    return invoke


def test_images(run_fails, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    Image.effect_noise((64, 64), 90).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    assert "There is no file" in run_fails(image=tmp_path / "missing.png")
    assert "not an image" in run_fails(image=tmp_path / "notes.txt")
    assert "cut short" in run_fails(image=tmp_path / "cut.jpg")
    assert "is a folder" in run_fails(image=tmp_path)
    assert "save the image to a file first" in run_fails(image="https://example.org/cat.png")


def test_methods_and_settings(run_fails):
    assert "did you mean 'visipruner'" in run_fails("--method", "visipruner2")
    assert "did you mean 'keep_tokens'" in run_fails("--set", "keep_token=3")
    assert "[-1, 1]" in run_fails("--set", "filter_threshold=7")
    assert "key=value" in run_fails("--set", "nonsense")
    assert "shallow_end is 40 but the model has 6 layers" in run_fails("--set", "shallow_end=40")
    assert "layers are 0 to 5" in run_fails("--set", "shallow_end=2", "--set", "filter_layer=6")


def test_config_files(run_fails, tmp_path):
    broken = tmp_path / "pruner.json"
    assert "no pruner file" in run_fails("--config", broken)
    broken.write_text("{")
    assert "not a pruner.json" in run_fails("--config", broken)
    broken.write_text(json.dumps({"format_version": 1, "method": "visiprunner", "settings": {}}))
    assert "did you mean 'visipruner'" in run_fails("--config", broken)
    assert "leave out --method" in run_fails("--config", broken, "--method", "none")


def test_model_names(run_fails, tmp_path, photo):
    assert "--allow-download" in run_fails(model="someone/something")
    assert "it is not a folder here" in run_fails(model="./no/such/folder")
    assert "give the folder" in run_fails(model=photo)
    (tmp_path / "empty").mkdir()
    assert "could not be loaded" in run_fails(model=tmp_path / "empty")


def test_models_that_cannot_be_used(run_fails, text_folder, tmp_path):
    assert "text-only model (llama)" in run_fails(model=text_folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "kosmos-2"}))
    assert "'kosmos-2' are not supported" in run_fails(model=other)
    remote_code = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (other / "config.json").write_text(json.dumps(remote_code))
    assert "could not be loaded" in run_fails(model=other)
    (other / "config.json").write_text("{")
    assert "could not be loaded" in run_fails(model=other)


def test_checkpoints_that_are_incomplete(run_fails, tmp_path):
    assert "no chat template" in run_fails(model=save_llava(tmp_path / "bare", layers=2, chat_template=None))
    folder = save_llava(tmp_path / "model", layers=2)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    assert "could not be loaded" in run_fails(model=folder)
    (folder / "model.safetensors").unlink()
    assert "could not be loaded" in run_fails(model=folder)


def test_checkpoints_in_the_cache_that_do_not_load(run_fails, llava_folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--one" / "snapshots" / "abc"
    shutil.copytree(llava_folder, snapshot)
    (tmp_path / "models--some--one" / "refs").mkdir()
    (tmp_path / "models--some--one" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (snapshot / "model.safetensors").write_bytes(b"x" * 100)
    for damage, told in (
        (lambda: None, "deserializing header"),
        ((snapshot / "model.safetensors").unlink, "does not appear to have a file named"),
        (lambda: (snapshot / "config.json").write_text("{"), "not a valid JSON file"),
    ):
        damage()
        sentence = run_fails(model="some/one")
        assert told in sentence
        assert "if it was not downloaded as a whole, add --allow-download" in sentence
        assert "is not in the local Hugging Face cache" not in sentence
    assert "is not in the local Hugging Face cache" in run_fails(model="some/other")


def test_empty_question(fails, llava_folder, photo):
    assert "question is empty" in fails("run", photo, "-q", " ", "--model", llava_folder)


def test_out_that_cannot_be_written(run_fails, tmp_path, photo):
    assert "Cannot write to --out" in run_fails("--out", photo)
    assert "Cannot write to --out" in run_fails("--out", photo / "below")


def test_out_is_checked_before_the_model_is_loaded(run_fails, photo, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("loaded the model"))
    run_fails("--out", photo)


def _raise(error):
    def raising(*_, **__):
        raise error

    return raising


def test_full_disk_leaves_no_half_written_file(cli, llava_folder, photo, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(files.os, "replace", _raise(OSError(errno.ENOSPC, "No space left on device")))
    result = cli("run", photo, "-q", "what is this ?", "--model", llava_folder, "--max-new-tokens", 1, "--out", out)
    assert result.exit_code == 1
    assert "The disk is full" in result.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (KeyboardInterrupt(), "interrupted", 130),
        (MemoryError(), "Not enough memory", 1),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
            "Not enough memory",
            1,
        ),
        (ModuleNotFoundError("No module named 'gguf'", name="gguf"), "install it with: pip install gguf", 1),
        (
            ImportError("Please install torch and gguf>=0.10.0 first.\nInstall it."),
            "install it with: pip install gguf",
            1,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/somewhere"),
            "No permission to read or write (/somewhere)",
            1,
        ),
    ],
)
def test_while_it_answers(run_fails, monkeypatch, error, sentence, code):
    monkeypatch.setattr(asking, "greedy_reply", _raise(error))
    assert sentence in run_fails(code=code)


def test_the_unforeseen_is_one_sentence_too_and_debug_shows_it(cli, llava_folder, photo, monkeypatch):
    monkeypatch.setattr(asking, "greedy_reply", _raise(ZeroDivisionError("oh")))
    arguments = ["run", photo, "-q", "what is this ?", "--model", llava_folder]
    result = cli(*arguments)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [f"visipruner: {explain(ZeroDivisionError('oh'))}"]
    monkeypatch.setenv("VISIPRUNER_DEBUG", "1")
    assert isinstance(cli(*arguments).exception, ZeroDivisionError)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "x.png"], ["rum"], ["run", "x.png", "-q", "a", "--dtype", "int3"]]
)
def test_usage_errors_exit_with_2(cli, arguments):
    result = cli(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
