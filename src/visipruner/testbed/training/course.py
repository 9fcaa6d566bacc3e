"""The whole training from packaged parts to weights: warm start and first part, then the second part."""

from dataclasses import replace
from pathlib import Path

from visipruner.testbed.assembly.llava import PATCH_SIZE, assemble
from visipruner.testbed.training.loop import train
from visipruner.testbed.training.recipe import FIRST, SECOND, SMALL, Recipe

FIRST_FOLDER = "first"


def run_course(
    emoji: Path,
    out: Path,
    images: int | None = None,
    resume: bool = False,
    continue_from: Path | None = None,
    dtype: str | None = None,
    seed: str | None = None,
) -> Path:
    """Train `recipe.FIRST` in `out`/first and `recipe.SECOND` in `out`; returns the weights' path.

    `continue_from` is a folder with earlier weights and their recipe, taken in place of the first part. `images`,
    `dtype` and `seed` replace those of the second part (`dtype` those of both).
    """
    first, second = (replace(recipe, dtype=dtype or recipe.dtype) for recipe in (FIRST, SECOND))
    second = replace(second, seed=seed or second.seed, images=images or second.images)
    if continue_from is None:
        continue_from = out / FIRST_FOLDER
        _part(first, emoji, continue_from, resume)
    return _part(second, emoji, out, resume, continue_from)


def _part(recipe: Recipe, emoji: Path, out: Path, resume: bool, continue_from: Path | None = None) -> Path:
    # A training leaves its updates in the model. Positions of larger pictures are interpolated from these.
    assembled = assemble(SMALL * PATCH_SIZE)
    return train(assembled.model, assembled.processor, emoji, out, recipe, resume, continue_from=continue_from)
