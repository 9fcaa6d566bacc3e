"""What a model brings along besides its weights: settings found for it, questions, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from visipruner.errors import ConfigError
from visipruner.models.loading import TESTBEDS

if TYPE_CHECKING:
    from visipruner.contract.pruner import Pruner


def calibrated(name: str) -> Pruner | None:
    """The settings that an analysis of this model gave, or None where it brings none."""
    if name not in TESTBEDS:
        return None
    from visipruner.testbed.calibration import calibrated

    return calibrated(TESTBEDS[name])


def questions(name: str) -> Path | None:
    """A question file about pictures that lie beside it, or None."""
    if name not in TESTBEDS:
        return None
    from visipruner.testbed.testset import QUESTIONS_FILE, TEST_FOLDER

    return TEST_FOLDER / QUESTIONS_FILE


def data_of(name: str) -> Path:
    """`questions`. Raises ConfigError where the model brings none."""
    path = questions(name)
    if path is None:
        raise ConfigError("Give the image-question pairs with --data FILE.jsonl; only the testbed brings its own.")
    return path


def photo() -> Path | None:
    """A photograph to try any model on."""
    from visipruner.testbed.testset import load_photos

    return next(iter(load_photos()), None)
