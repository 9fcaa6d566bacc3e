"""A tiny model of the small one's kind, and a few pictures of the shipped test set."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tests.byte_llava import make_model, make_processor
from visipruner_testbed.testset import QUESTIONS_FILE, TEST_FOLDER


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return make_processor()


@pytest.fixture
def model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    return make_model(processor)


@pytest.fixture
def excerpt(tmp_path: Path) -> Callable[..., Path]:
    """`excerpt(scenes=4)` makes a test folder of the first pictures of each split named, with three questions each."""

    def make(**pictures: int) -> Path:
        folder = tmp_path / "excerpt"
        folder.mkdir()
        lines = (TEST_FOLDER / QUESTIONS_FILE).read_text(encoding="utf-8").splitlines()
        kept = []
        for split, count in pictures.items():
            for number in range(count):
                name = f"{split.replace('_', '-')}-{number:03d}.jpg"
                (folder / name).write_bytes((TEST_FOLDER / name).read_bytes())
                kept += [line for line in lines if json.loads(line)["image"] == name][:3]
        (folder / QUESTIONS_FILE).write_text("\n".join(kept), encoding="utf-8")
        return folder

    return make
