"""Pictures and scoring of the task beside this file."""

from typing import Any

from PIL import Image

from visipruner.evaluation.scoring import is_right
from visipruner_testbed.testset import TEST_FOLDER


def picture(sample: dict[str, Any]) -> list[Image.Image]:
    """The one image of a question."""
    return [Image.open(TEST_FOLDER / sample["image"]).convert("RGB")]


def score(sample: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for a right answer, as `visipruner eval` counts it."""
    return {"accuracy": float(is_right(results[0], sample["answer"]))}
