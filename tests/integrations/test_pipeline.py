"""transformers' `pipeline` on a model with a method attached: what `generate` says, for texts, chats and batches."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

import visipruner as vp
from tests.cli.tiny_llava import save_llava
from visipruner.chat import message_inputs

PRUNER = vp.FastV(layer=1, keep_tokens=4)
QUESTIONS = ("what is this ?", "where the cat red blue ?", "is this a dog ?")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    return AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def asking(loaded: tuple[Any, Any]) -> Any:
    pipe = pipeline("image-text-to-text", model=loaded[0], processor=loaded[1])
    pipe.tokenizer.padding_side = "left"
    return pipe


def _chats() -> list[list[dict[str, Any]]]:
    pictures = [Image.effect_noise((60, 60), 30 * number).convert("RGB") for number in (1, 2, 3)]
    return [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
        for picture, question in zip(pictures, QUESTIONS, strict=True)
    ]


def _generated(loaded: tuple[Any, Any], chat: list[dict[str, Any]]) -> str:
    model, processor = loaded
    inputs = message_inputs(model, processor, chat)
    with vp.attach(model, PRUNER):
        output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    return str(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_a_chat(loaded: tuple[Any, Any], asking: Any) -> None:
    for chat in _chats():
        with vp.attach(loaded[0], PRUNER) as handle:
            [said] = asking(text=chat, max_new_tokens=5, do_sample=False, return_full_text=False)
            assert list(map(len, handle.trace[0].kept)) == [25, 4, 4, 4, 4, 4, 4]
        assert said["generated_text"].strip() == _generated(loaded, chat) != ""


def test_a_text_with_its_picture(loaded: tuple[Any, Any], asking: Any) -> None:
    chat = _chats()[0]
    picture = chat[0]["content"][0]["image"]
    text = loaded[1].apply_chat_template(chat, add_generation_prompt=True)
    with vp.attach(loaded[0], PRUNER):
        [said] = asking(images=picture, text=text, max_new_tokens=5, do_sample=False, return_full_text=False)
    assert said["generated_text"].strip() == _generated(loaded, chat)


def test_a_batch_of_chats(loaded: tuple[Any, Any], asking: Any) -> None:
    chats = _chats()
    with vp.attach(loaded[0], PRUNER) as handle:
        said = asking(text=chats, batch_size=3, max_new_tokens=5, do_sample=False, return_full_text=False)
        assert [len(example.kept[-1]) for example in handle.trace] == [4, 4, 4]
    assert [one[0]["generated_text"].strip() for one in said] == [_generated(loaded, chat) for chat in chats]
