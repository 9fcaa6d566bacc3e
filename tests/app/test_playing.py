"""A round without the page: held against `vp.ask`, the model's own attention, and the command line."""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import visipruner as vp
from tests.cli.tiny_llava import GRID, save_llava
from visipruner.accounting.record import ExampleTrace
from visipruner.app import showing
from visipruner.app.playing import Choice, Looks, Played, Playground
from visipruner.asking import overlay
from visipruner.chat import attached, chat_inputs
from visipruner.cli.app import app
from visipruner.errors import explain
from visipruner.models import loading

EARLY = "visipruner:shallow_end=2,filter_layer=3,exit_layer=5,keep_tokens=4"
QUESTION = "what is this ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def playground(folder: Path) -> Playground:
    return Playground(loading.load(str(folder)), {"dtype": "float32", "device": ""}, max_new_tokens=6)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.new("RGB", (120, 80), "navy")
    ImageDraw.Draw(picture).ellipse((40, 20, 80, 60), fill="orange")
    path = tmp_path_factory.mktemp("pictures") / "my photo.png"
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def steps(playground: Playground, photo: Path) -> list[Played]:
    return list(playground.play(photo, QUESTION, [Choice(EARLY), Choice("divprune", 0.2)]))


def test_a_round_is_what_ask_answers(playground: Playground, photo: Path, steps: list[Played]) -> None:
    played = steps[-1]
    for side, method in zip(played.sides, (EARLY, "divprune:keep_ratio=0.2"), strict=True):
        asked = vp.ask(playground.loaded, [photo], [QUESTION], method, repeats=1, max_new_tokens=6).answers[0]
        assert asked.dense is not None
        assert played.dense is not None
        assert played.dense.text == asked.dense.text
        told = side.answered
        assert (told.answer, told.cuts, told.flops_cut) == (asked.answer, asked.cuts, asked.flops_cut)
        assert showing.table(played).count(told.tokens_told()) == 1
    assert len(played.sides[1].trace[0].kept[0]) == round(0.2 * GRID**2)


def test_answers_come_word_by_word(playground: Playground, steps: list[Played]) -> None:
    played = steps[-1]
    tokenizer, answers = playground.loaded.processor.tokenizer, [played.dense, *(one.answered for one in played.sides)]
    for who, answer in zip(("dense", "0", "1"), answers, strict=True):
        said = [step.said[who] for step in steps if who in step.said]
        text = getattr(answer, "text", None) or getattr(answer, "answer", "")
        assert said[-1] == text
        assert len(set(said)) >= len(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert all(text.startswith(part) for part in said)


def test_looks_are_the_models_own_attention(playground: Playground, photo: Path, steps: list[Played]) -> None:
    """Held against the whole maps of eager attention, another path through transformers."""
    loaded = playground.loaded
    prompt = chat_inputs(loaded.model, loaded.processor, Image.open(photo), QUESTION)
    visual = (prompt["input_ids"][0] == loaded.model.config.image_token_id).nonzero().flatten()
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            maps = loaded.model(**prompt, output_attentions=True).attentions
    finally:
        loaded.model.set_attn_implementation("sdpa")
    looks = steps[-1].looks
    assert looks is not None
    assert looks.grid == (GRID, GRID)
    expected = torch.stack([layer[0, :, -1].mean(0)[visual] for layer in maps])
    np.testing.assert_allclose(looks.weights, expected.numpy(), atol=1e-5)
    words = showing.layer_words(steps[-1], steps[-1].sides[0], 4)
    kept = steps[-1].sides[0].trace[0].kept[4]
    assert f"gives the image {expected[4].sum():.1%} of its attention" in words
    assert f"these tokens have {expected[4][kept].sum() / expected[4].sum():.0%}" in words


def test_numbers_are_those_of_the_dense_models_own_run(
    playground: Playground, photo: Path, steps: list[Played]
) -> None:
    """Dense FLOPs and bytes: a traced run that keeps everything, and the tensors of a cache."""
    loaded, played = playground.loaded, steps[-1]
    prompt = chat_inputs(loaded.model, loaded.processor, Image.open(photo), QUESTION)
    with attached(loaded.model, vp.NoPruning(), prompt) as turn, torch.no_grad():
        loaded.model(**prompt)
        assert turn.trace.flops() == played.dense_flops
    with torch.no_grad():
        cache = loaded.model(**prompt).past_key_values
    assert vp.accounting.cache_bytes(cache).used == played.dense_kv


def test_code_does_the_same(
    playground: Playground, photo: Path, steps: list[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    code, out = showing.code(playground, steps[-1]), io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code, {})
    for line, side in zip(out.getvalue().splitlines(), steps[-1].sides, strict=True):
        told = side.answered
        assert line.startswith(f"{told.answer} | {steps[-1].said['dense']} | {told.tokens_told()} | {told.flops_cut}")
    command = next(line for line in code.splitlines() if line.startswith("# "))
    result = CliRunner().invoke(app, [*shlex.split(command[2:])[1:], "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    assert f'"answer": "{steps[-1].sides[0].answered.answer}"' in result.stdout


@pytest.mark.parametrize(
    ("kept", "unread", "frozen", "expected"),
    [
        ([4, 4, 2, 0], [0], [], ["unread", "all", "some", "none"]),
        ([0, 4, 4, 4], [], [2], ["later", "all", "frozen", "all"]),
        ([0, 0, 0, 0], [], [], ["none", "none", "none", "none"]),
    ],
)
def test_stages_of_a_run(kept: list[int], unread: list[int], frozen: list[int], expected: list[str]) -> None:
    example = ExampleTrace(
        prompt_length=9,
        num_visual=4,
        kept=[list(range(count)) for count in (*kept, kept[-1])],
        visual_attention=[layer not in unread for layer in range(4)],
        frozen=frozen,
    )
    assert showing.stages(example) == list(zip(expected, kept, strict=True))


def test_the_picture_of_a_layer(steps: list[Played]) -> None:
    """Dropped cells are dark, and the cell that the last row looks at most has the color of looks."""
    played, side = steps[-1], steps[-1].sides[0]
    assert played.looks is not None
    weights = np.zeros((6, GRID * GRID))
    dropped, kept = [next(t for t in range(25) if (t in side.trace[0].kept[4]) == wanted) for wanted in (False, True)]
    dark, light = (_cell(showing.layer_picture(_with(played, weights), side, 4), token) for token in (dropped, kept))
    assert sum(dark) < 0.6 * sum(light)
    weights[4, dropped] = 1
    glowing = _cell(showing.layer_picture(_with(played, weights), side, 4), dropped)
    assert np.abs(np.subtract(glowing, overlay.LOOK_COLOR)).max() < 60
    weights[4, dropped] = 0
    assert glowing != dark


def _with(played: Played, weights: Any) -> Played:
    return Played(**{**vars(played), "looks": Looks(weights, (GRID, GRID))})


def _cell(picture: Image.Image, token: int) -> tuple[int, ...]:
    """Color in the middle of a token's cell: the processor shows the middle square of the 3 : 2 picture."""
    side = picture.height
    x = (picture.width - side) / 2 + (token % GRID + 0.5) * side / GRID
    return picture.getpixel((int(x), int((token // GRID + 0.5) * side / GRID)))  # type: ignore[return-value]


def test_tokens_without_a_grid_are_drawn_in_their_order(steps: list[Played]) -> None:
    played, side = steps[-1], steps[-1].sides[0]
    grids = side.trace[0].grids
    side.trace[0].grids = [None]
    try:
        picture = showing.layer_picture(_with(played, np.full((6, 25), 0.01)), side, 3)
        assert picture.size == (overlay.LONG_SIDE, overlay.LONG_SIDE)
        assert "form no single grid" in showing.layer_words(played, side, 3)
    finally:
        side.trace[0].grids = grids


@pytest.mark.parametrize(
    ("picture", "question", "method"),
    [
        ("notes.txt", QUESTION, EARLY),
        ("missing.png", QUESTION, EARLY),
        (None, " ", EARLY),
        (None, "what is <image> ?", EARLY),
        (None, QUESTION, "visipruner2"),
        (None, QUESTION, "visipruner:keep_token=3"),
        (None, QUESTION, "visipruner:shallow_end=40"),
        (None, QUESTION, "fastv:layer=9"),
    ],
)
def test_what_is_wrong_is_told_as_on_the_command_line(
    playground: Playground, folder: Path, photo: Path, tmp_path: Path, picture: str | None, question: str, method: str
) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    path = photo if picture is None else tmp_path / picture
    with pytest.raises(vp.VisiPrunerError) as caught:
        list(playground.play(path, question, [Choice(method)]))
    arguments = ["run", str(path), "-q", question, "--model", str(folder), "--method", method]
    said = CliRunner().invoke(app, arguments).stderr.strip().removeprefix("visipruner: ")
    assert explain(caught.value).removeprefix("visipruner: ").replace("The question", "A question") == said


def test_a_reader_who_leaves_stops_the_round(playground: Playground, photo: Path, steps: list[Played]) -> None:
    playing = playground.play(photo, QUESTION, [Choice(EARLY)])
    while "0" not in next(playing).said:  # the method is attached
        pass
    playing.close()
    again = list(playground.play(photo, QUESTION, [Choice(EARLY)]))[-1]  # waits for the first, finds the model free
    assert again.said["0"] == steps[-1].said["0"]


def test_no_picture_yet(playground: Playground) -> None:
    with pytest.raises(vp.ConfigError, match="drop one, or take a sample"):
        list(playground.play(None, QUESTION, [Choice("none")]))


def test_a_model_that_cannot_be_watched_is_played_with_all_the_same(
    playground: Playground, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise vp.UnsupportedModelError("This model cannot be watched.")

    monkeypatch.setattr("visipruner.app.playing.Probe", refuse)
    played = list(playground.play(photo, "where is the cat ?", [Choice(EARLY)]))[-1]
    assert "This model cannot be watched." in showing.layer_words(played, played.sides[0], 0)
    assert showing.layer_picture(played, played.sides[0], 0).size == (960, 640)


def test_without_gradio_the_command_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "visipruner.app.page", raising=False)
    monkeypatch.delenv("VISIPRUNER_DEBUG", raising=False)
    result = CliRunner().invoke(app, ["app", "--model", str(folder)])
    assert result.exit_code == 1
    assert result.stderr == (
        "visipruner: This needs the package 'gradio'; install it with: pip install 'visipruner[app]'\n"
    )
