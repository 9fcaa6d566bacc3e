"""What `visipruner` finds through its entry points: the small model with 576 visual tokens and with 256."""

from __future__ import annotations

from functools import partial

from visipruner.models.packaged import PackagedModel
from visipruner_testbed.build import IMAGE_SIZE, ensure_built, load
from visipruner_testbed.calibration import calibrated
from visipruner_testbed.testset import QUESTIONS_FILE, TEST_FOLDER, load_photos


def _packaged(image_size: int) -> PackagedModel:
    return PackagedModel(
        load=partial(load, image_size=image_size),
        prepare=partial(ensure_built, image_size),
        calibrated=partial(calibrated, image_size),
        questions=TEST_FOLDER / QUESTIONS_FILE,
        pictures=tuple(load_photos()),
    )


LARGE, SMALL = _packaged(IMAGE_SIZE), _packaged(224)
