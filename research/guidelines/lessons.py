"""Pictures as the frozen vision tower sees them, with their questions; computed once for all arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from research.scenes import TRAIN_STYLES, EmojiArt, LayoutOptions, Question, draw_example
from research.training.sight import vision_features
from visipruner.files import write_atomic
from visipruner_testbed.testset import Sample


@dataclass(frozen=True)
class Lesson:
    """One picture: `features` `[patches, channels]`, what the projector reads, and its questions."""

    name: str
    features: Tensor
    questions: Sequence[Question]


def drawn(
    model: Any, processor: Any, emoji: Path, seed: str, pictures: int, questions: int, folder: Path
) -> list[Lesson]:
    """The first `pictures` scenes of a seed; their features are kept in `folder`."""
    art, options = EmojiArt(emoji), LayoutOptions(styles=TRAIN_STYLES)
    examples = (draw_example(seed, index, art, options, questions) for index in range(pictures))
    named = ((f"{seed}/{index}", one.picture, one.questions) for index, one in enumerate(examples))
    return _seen(model, processor, named, pictures, folder / f"{seed}.pt")


def shipped(model: Any, processor: Any, samples: Sequence[Sample], pictures: int, folder: Path) -> list[Lesson]:
    """The first `pictures` of the test set's "scenes" with their questions."""
    own = [sample for sample in samples if sample.split == "scenes"]
    grouped = [(path, list(asked)) for path, asked in groupby(own, key=lambda sample: sample.image)][:pictures]
    named = ((path.name, Image.open(path).convert("RGB"), [_question(one) for one in asked]) for path, asked in grouped)
    return _seen(model, processor, named, len(grouped), folder / f"test-{len(grouped)}.pt")


def _question(sample: Sample) -> Question:
    return Question(sample.question, sample.answer, sample.type, sample.tally)


def _seen(
    model: Any, processor: Any, named: Iterator[tuple[str, Any, Sequence[Question]]], count: int, kept: Path
) -> list[Lesson]:
    """Half precision is enough for what every arm is given alike."""
    known: Tensor | None = torch.load(kept, weights_only=True) if kept.exists() else None
    if known is not None and len(known) < count:
        known = None
    lessons = []
    for index, (name, picture, questions) in enumerate(tqdm(named, total=count, desc=kept.stem, disable=None)):
        if known is None:
            pixels = processor.image_processor(picture, return_tensors="pt")["pixel_values"]
            features = vision_features(model, pixels)[0].half()
        else:
            features = known[index]
        lessons.append(Lesson(name, features, questions))
    if known is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        stacked = torch.stack([lesson.features for lesson in lessons])
        write_atomic(kept, lambda part: torch.save(stacked, part))
    return lessons
