"""The whole training from packaged parts to weights: the warm start, then one part after the other."""

from dataclasses import replace
from pathlib import Path

from research.training.claim import check_claim
from research.training.loop import LOG_FILE, train
from research.training.recipe import EARLIER_PARTS, LAST_PART, SMALL, Recipe
from visipruner_testbed.assembly.llava import PATCH_SIZE, assemble


def run_course(
    emoji: Path,
    out: Path,
    images: int | None = None,
    resume: bool = False,
    continue_from: Path | None = None,
    dtype: str | None = None,
    seed: str | None = None,
) -> Path:
    """Train `EARLIER_PARTS` in folders of `out` and `LAST_PART` in `out`; returns the weights' path.

    `continue_from` is a folder with earlier weights and their recipe, taken in place of the earlier parts. `images`,
    `dtype` and `seed` replace those of the last part (`dtype` those of all).

    Raises ConfigError when a part is there already and `resume` is not set, or it was begun with other settings.
    """
    last = replace(
        LAST_PART,
        seed=seed or LAST_PART.seed,
        images=images or LAST_PART.images,
        dtype=dtype or LAST_PART.dtype,
    )
    # Before hours go into the earlier parts.
    check_claim(out, last, continue_from or out / list(EARLIER_PARTS)[-1], resume)
    if continue_from is None:
        for name, recipe in EARLIER_PARTS.items():
            _part(replace(recipe, dtype=dtype or recipe.dtype), emoji, out / name, resume, continue_from)
            continue_from = out / name
    return _part(last, emoji, out, resume, continue_from)


def course_logs(out: Path) -> list[Path]:
    """The logs of all parts that are in `out`, in their order."""
    logs = (folder / LOG_FILE for folder in (*(out / name for name in EARLIER_PARTS), out))
    return [log for log in logs if log.exists()]


def _part(recipe: Recipe, emoji: Path, out: Path, resume: bool, continue_from: Path | None = None) -> Path:
    # A training leaves its updates in the model. Positions of larger pictures are interpolated from these.
    assembled = assemble(SMALL * PATCH_SIZE)
    return train(assembled.model, assembled.processor, emoji, out, recipe, resume, continue_from=continue_from)
