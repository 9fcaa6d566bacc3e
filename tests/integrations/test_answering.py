"""What the plug-ins share: a model with a method on it answers conversations as the plain calls do."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.tiny_llava import save_llava
from visipruner import VisiPruner, attach
from visipruner.chat import chat_inputs, greedy_reply
from visipruner.errors import ConfigError, LoadError
from visipruner.integrations.answering import Answerer

QUESTION = "what is this ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.effect_noise((60, 60), 90).convert("RGB")


def _asked(*pictures: Image.Image) -> list[dict[str, object]]:
    shown = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize("settings", [{"layer": 1, "keep_ratio": 0.2}, '{"layer": 1, "keep_ratio": 0.2}'])
def test_an_answer_is_the_pruned_models(folder: Path, picture: Image.Image, settings: dict[str, float] | str) -> None:
    answerer = Answerer(str(folder), "fastv", settings)
    answer = answerer.answer(_asked(picture), 4)
    inputs = chat_inputs(answerer.model, answerer.processor, picture, QUESTION)
    with attach(answerer.model, answerer.pruner) as handle:
        reply = greedy_reply(answerer.model, answerer.processor.tokenizer, inputs, 4)
        assert answer.flops_cut == handle.trace.flops_cut(0) > 0.1
        assert len(handle.trace[0].kept[2]) == 5  # 0.2 of 25
    assert (answer.text, answer.tokens) == (reply.text, reply.tokens)


def test_a_batch_gives_the_answers_of_one_at_a_time(folder: Path, picture: Image.Image) -> None:
    """Prompts with one image, two and none, of unlike length."""
    answerer = Answerer(str(folder), "fastv:layer=1,keep_tokens=3")
    longer = [{"role": "user", "content": [*_asked(picture)[0]["content"], {"type": "text", "text": "the cat red ?"}]}]
    conversations = [_asked(picture), _asked(picture, picture), _asked(), longer]
    alone = [answerer.answer(messages, 4) for messages in conversations]
    together = answerer.answers(conversations, 4)
    assert [(one.text, one.tokens) for one in together] == [(one.text, one.tokens) for one in alone]
    assert len({one.text for one in alone}) > 1


def test_a_batch_needs_padding(folder: Path, picture: Image.Image) -> None:
    answerer = Answerer(str(folder), "fastv:layer=1")
    answerer.processor.tokenizer.pad_token = None
    with pytest.raises(ConfigError, match=r"answered one by one: batch_size=1\."):
        answerer.answers([_asked(picture)] * 2, 1)


def test_methods_are_named_as_in_a_comparison(folder: Path, tmp_path: Path) -> None:
    assert Answerer(str(folder)).pruner.name == "visipruner"
    assert Answerer(str(folder), "fastv").pruner.settings()["layer"] == 1  # the published layer 2 of 32, at 6 layers
    assert Answerer(str(folder), "random:keep_tokens=5+fastv:layer=1").pruner.name == "composed"
    saved = VisiPruner(shallow_end=1, filter_layer=2, keep_tokens=2).save_pretrained(tmp_path)
    assert Answerer(str(folder), config=str(saved)).pruner.settings()["keep_tokens"] == 2


def test_several_images_or_none(folder: Path, picture: Image.Image) -> None:
    answerer = Answerer(str(folder), "fastv:layer=1")
    assert answerer.answer(_asked(picture, picture), 2).flops_cut > answerer.answer(_asked(picture), 2).flops_cut
    assert answerer.answer(_asked(), 2).flops_cut == 0


def test_a_model_that_is_not_here_says_how_each_harness_fetches_it() -> None:
    with pytest.raises(LoadError, match=r"add --allow-download \(allow_download=True in Python and in lmms-eval"):
        Answerer("someone/something")


def test_what_cannot_be_answered(folder: Path) -> None:
    with pytest.raises(ConfigError, match="not video"):
        Answerer(str(folder), "none").answer([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}], 1)
    with pytest.raises(ConfigError, match="is not JSON"):
        Answerer(str(folder), "fastv", "keep_ratio=0.3")
    with pytest.raises(ConfigError, match="no JSON object"):
        Answerer(str(folder), "fastv", "[1]")
    with pytest.raises(ConfigError, match="leave out method"):
        Answerer(str(folder), "fastv", config="pruner.json")
    with pytest.raises(ConfigError, match="layers are 0 to 5"):
        Answerer(str(folder), "fastv", {"layer": 99})
