"""The plug-in inside lmms-eval; these tests are skipped where lmms-eval is not installed, as in `make test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.tiny_llava import save_llava
from visipruner.errors import ConfigError
from visipruner.integrations.answering import Answerer

pytest.importorskip("lmms_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def _made(arguments: str, **options: Any) -> Any:
    from lmms_eval.models import get_model

    return get_model("visipruner").create_from_arg_string(arguments, {"batch_size": 1, **options})


def _requests(model: Any, picture: Image.Image, **generation: Any) -> list[Any]:
    from lmms_eval.api.instance import Instance

    def messages(sample: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": sample["q"]}]}]

    model.task_dict = {"tiny": {"test": [{"q": "what is this ?"}, {"q": "where is the cat ?"}]}}
    about = {"task": "tiny", "doc_id": 0, "repeats": 1}
    return [
        Instance("generate_until", ("", messages, generation, number, "tiny", "test"), 0, about) for number in (0, 1)
    ]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_requests_are_answered_as_the_library_answers(folder: Path, batch_size: int) -> None:
    picture = Image.effect_noise((60, 60), 90).convert("RGB")
    model = _made(f'pretrained={folder},method=fastv,settings={{"layer":1,"keep_ratio":0.2}}', batch_size=batch_size)
    answers = model.generate_until(_requests(model, picture, max_new_tokens=4))
    alone = Answerer(str(folder), "fastv:layer=1,keep_ratio=0.2")
    for given, question in zip(answers, ("what is this ?", "where is the cat ?"), strict=True):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        expected = alone.answer([{"role": "user", "content": content}], 4)
        assert (given.text, given.token_counts.output_tokens) == (expected.text, expected.tokens)
    stop = answers[0].text.split()[1]
    cut = model.generate_until(_requests(model, picture, max_new_tokens=4, until=[stop]))
    assert cut[0].text == answers[0].text.split(stop)[0]


def test_arguments_as_lmms_eval_splits_them(folder: Path) -> None:
    model = _made(f"pretrained={folder},method='fastv:layer=1,keep_ratio=0.2'")
    assert model._answerer.pruner.settings()["keep_ratio"] == 0.2
    assert model.device.type == "cpu"


def test_what_it_does_not_do(folder: Path) -> None:
    with pytest.raises(ConfigError, match="give a number, not --batch_size auto"):
        _made(f"pretrained={folder}", batch_size="auto")
    model = _made(f"pretrained={folder},method=none")
    picture = Image.new("RGB", (60, 60))
    with pytest.raises(ConfigError, match="tiny asks for sampling"):
        model.generate_until(_requests(model, picture, temperature=0.7))
    with pytest.raises(ConfigError, match="tiny asks for beams"):
        model.generate_until(_requests(model, picture, num_beams=3))
    with pytest.raises(NotImplementedError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="one round"):
        model.generate_until_multi_round([])
