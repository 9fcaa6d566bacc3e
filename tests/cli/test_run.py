"""`visipruner run` end to end on a tiny random LLaVA."""

import json

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import visipruner as vp
from tests.cli.tiny_llava import PRUNE_EARLY


@pytest.fixture
def run(cli, llava_folder, photo):
    def invoke(*arguments):
        result = cli("run", photo, "-q", "what is this ?", "--model", llava_folder, "--max-new-tokens", 6, *arguments)
        assert result.exit_code == 0, result.stderr
        return result

    return invoke


def test_it_shows_the_answer_and_what_was_saved(run):
    shown = run(*PRUNE_EARLY).stdout
    assert "what is this ?" in shown
    assert "25 -> 4 (trigger layer 3) -> 0 (exit layer 5)" in shown
    for what in ("answer", "FLOPs cut", "visual attention cut", "seconds", "to first token"):
        assert what in shown


def test_every_cut_is_shown(run):
    method = "uniform:keep_tokens=16+shortv:layers=[1,2,4]+fastv:layer=3,keep_tokens=4"
    shown = run("--method", method).stdout
    assert "25 -> 16 (before the language model) -> 4 (after layer 2), no exit layer, frozen in layers 1-2 4" in shown
    [answer] = json.loads(run("--method", method, "--json").stdout)["answers"]
    assert (answer["kept_tokens"], answer["cuts"], answer["frozen_layers"]) == (16, [[0, 16], [3, 4]], [1, 2, 4])
    many = run("--method", "schedule", "--set", "layers=[0,1,2,3,4]", "--set", "keep=[9,8,7,6,0]").stdout
    assert "25 -> 9 (trigger layer 0) -> ... -> 6 (after layer 3) -> 0 (exit layer 5)" in many


def test_json_is_all_there_is_on_stdout(run, llava_folder, photo):
    content = json.loads(run(*PRUNE_EARLY, "--json").stdout)
    [answer] = content["answers"]
    assert content["schema"] == "visipruner.run/1"
    assert content["method"]["name"] == "visipruner"
    assert content["method"]["settings"]["keep_tokens"] == 4
    assert content["model"] == str(llava_folder)
    assert answer["image"] == str(photo)
    assert (answer["visual_tokens"], answer["kept_tokens"]) == (25, 4)
    assert (answer["trigger_layer"], answer["exit_layer"]) == (3, 5)
    assert 0 < answer["flops_cut"] < 1
    assert 0 < answer["visual_attention_cut"] < 1
    assert answer["seconds"] >= answer["first_token_seconds"] > 0
    assert answer["dense"] is None


def test_the_answers_are_those_of_the_library(run, llava_folder, photo):
    """The same prompt by hand, pruned and dense, gives the texts that `--compare` reports."""
    [answer] = json.loads(run(*PRUNE_EARLY, "--compare", "--repeats", 1, "--json").stdout)["answers"]
    model = AutoModelForImageTextToText.from_pretrained(llava_folder, dtype="auto")
    processor = AutoProcessor.from_pretrained(llava_folder)
    content = [{"type": "image", "image": Image.open(photo)}, {"type": "text", "text": "what is this ?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

    def text():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    assert answer["dense"]["text"] == text()
    with vp.attach(model, vp.VisiPruner(shallow_end=2, filter_layer=3, exit_layer=5, keep_tokens=4)):
        assert answer["answer"] == text()
    assert answer["same_answer"] == (answer["answer"] == answer["dense"]["text"])
    assert answer["time_ratio"] == pytest.approx(answer["dense"]["seconds"] / answer["seconds"])


def test_compare_shows_both(run):
    shown = run("--method", "none", "--compare", "--repeats", 1).stdout
    assert "dense answer" in shown
    assert "same" in shown
    assert "25, no trigger layer, no exit layer" in shown


def test_every_image_is_asked_every_question(cli, llava_folder, photo, tmp_path):
    second = tmp_path / "elsewhere" / "photo.png"
    second.parent.mkdir()
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(second)
    out = tmp_path / "out" / "deep"
    questions = ["-q", "where is the cat ?", "-q", "is this a dog ?"]
    common = ["--model", llava_folder, *PRUNE_EARLY, "--compare", "--repeats", 1, "--max-new-tokens", 2]
    result = cli("run", photo, second, *questions, *common, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "of 4 answers agree with the dense model" in result.stdout
    saved = json.loads((out / "results.json").read_text())["answers"]
    asked = [(answer["image"], answer["question"]) for answer in saved]
    assert asked == [(str(image), question) for image in (photo, second) for question in questions[1::2]]
    names = ["1-photo-q1.png", "1-photo-q2.png", "2-photo-q1.png", "2-photo-q2.png"]
    assert [answer["overlay"] for answer in saved] == names
    assert sorted(path.name for path in out.iterdir()) == [*names, "results.json"]
    assert Image.open(out / names[0]).size != Image.open(out / names[2]).size


def test_a_saved_pruner_is_used(run, tmp_path):
    vp.VisiPruner(shallow_end=1, filter_layer=2, exit_layer=4, keep_tokens=9).save_pretrained(tmp_path)
    [answer] = json.loads(run("--config", tmp_path / "pruner.json", "--json").stdout)["answers"]
    assert (answer["kept_tokens"], answer["trigger_layer"], answer["exit_layer"]) == (9, 2, 4)


@pytest.mark.parametrize("options", [["--attn", "eager"], ["--dtype", "bfloat16"]])
def test_precision_and_attention_are_the_models(run, options):
    content = json.loads(run(*options, *PRUNE_EARLY, "--json").stdout)
    assert content[options[0].removeprefix("--")] == options[1]


def test_model_output_cannot_steer_the_terminal():
    from visipruner.cli.console import clean

    assert clean("[red]a\x1b[2Jb\x07").plain == "[red]a [2Jb "
