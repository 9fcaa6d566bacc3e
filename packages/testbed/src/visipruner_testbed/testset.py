"""The shipped test set: pictures and questions that no training seed ever drew."""

import json
from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER = Path(__file__).parent / "data"
TEST_FOLDER = DATA_FOLDER / "test"
PHOTO_FOLDER = DATA_FOLDER / "photos"
QUESTIONS_FILE = "questions.jsonl"
KNOWN = "known-things"
PARTS = ("local", "many", "documents")
"""Folders like the test set's: few tokens decide in `local` and `documents`, many in `many`."""
GRID = 24
"""Visual tokens along the side of a picture, as their `where` counts them."""


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    `split` is "scenes" (new layouts of trained things), "unseen-combinations" (things at places and shapes in colours
    that were only seen apart), "unseen-style" (drawn by another artist), "unseen-objects" (about things that were never
    trained on) or `KNOWN` (about trained things, in pictures drawn for the unseen ones), or one of `PARTS`. `scope` is
    "local" or "global", `tally` how a count comes about, see `scenes.questions`.
    """

    image: Path
    question: str
    answer: str
    type: str
    scope: str
    split: str
    tally: str = ""


def load_test_set(folder: Path = TEST_FOLDER) -> list[Sample]:
    """All samples of a test folder (`questions.jsonl` beside its pictures), grouped by picture."""
    lines = (folder / QUESTIONS_FILE).read_text(encoding="utf-8").split("\n")
    return [_sample(folder, json.loads(line)) for line in lines if line.strip()]


def load_photos() -> list[Path]:
    """The real photographs that ship for demonstrations (see LICENCES beside them)."""
    return sorted(path for path in PHOTO_FOLDER.iterdir() if path.suffix in {".jpg", ".png"})


def _sample(folder: Path, record: dict[str, str]) -> Sample:
    return Sample(
        image=folder / record["image"],
        question=record["question"],
        answer=record["answer"],
        type=record["type"],
        scope=record["scope"],
        split=record["split"],
        tally=record.get("tally", ""),
    )
