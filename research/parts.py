"""Draws the parts of the test set in which few tokens decide, beside those in which many do (`scenes.small`), and
the part with photographs, which is drawn where it is tested."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from research.drawing import rarest
from research.scenes import TRAIN_STYLES, UNSEEN_LOOK, EmojiArt, LayoutOptions
from research.scenes.layout import draw_scene
from research.scenes.photographs import KEPT, KEPT_KINDS
from research.scenes.questions import ask
from research.scenes.render import CANVAS, render
from research.scenes.scene import Scene
from research.scenes.small import Asked, box_of, draw_small
from research.scenes.vocabulary import OBJECTS
from visipruner.evaluation.samples import covered
from visipruner_testbed.testset import GRID, QUESTIONS_FILE

SEED = "few-1"
QUALITY = 85
PHOTOGRAPHS = "photographs"
_CANDIDATES = 30


@dataclass(frozen=True)
class Size:
    """How many `pictures` a part has, and `questions` about each, at most."""

    pictures: int
    questions: int


SIZES = {"local": Size(300, 2), "many": Size(120, 3), "documents": Size(180, 3), PHOTOGRAPHS: Size(150, 4)}
Record = dict[str, Any]


def planned(part: str, size: Size, seed: str = SEED) -> Iterator[tuple[str, Scene, list[Record]]]:
    """Each picture's name, its scene, and its lines of the question file; nothing is drawn for it."""
    asked = Counter[tuple[str, ...]]()
    for index in range(size.pictures):
        rng = Random(f"{seed}/{part}/{index}")
        split, scene, candidates = _photographed(rng, index) if part == PHOTOGRAPHS else _small(rng, part, index)
        name = f"{part}-{index:03d}.jpg"
        by_text = {one.question.question: one for one in candidates}
        chosen = rarest([one.question for one in by_text.values()], asked, size.questions)
        yield name, scene, [_record(name, split, scene, by_text[question.question]) for question in chosen]


def draw_part(
    emoji: Path,
    folder: Path,
    part: str,
    size: Size | None = None,
    seed: str = SEED,
    on_picture: Callable[[], object] = lambda: None,
) -> int:
    """Draw a part to a folder; returns the number of questions.

    Raises FileNotFoundError when `emoji` does not hold the pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    art, lines = EmojiArt(emoji), []
    for name, scene, records in planned(part, size or SIZES[part], seed):
        picture, _ = render(scene, art)
        picture.save(folder / name, quality=QUALITY)
        lines += [json.dumps(record) for record in records]
        on_picture()
    (folder / QUESTIONS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def _small(rng: Random, part: str, index: int) -> tuple[str, Scene, list[Asked]]:
    scene, candidates = draw_small(rng, part, UNSEEN_LOOK, index)
    return part, scene, candidates


def _photographed(rng: Random, index: int) -> tuple[str, Scene, list[Asked]]:
    """Plain scenes of photographs that training never shows: other ones of known things, and of things only drawn."""
    files = KEPT if index % 2 else KEPT_KINDS
    options = LayoutOptions(
        styles=TRAIN_STYLES,
        objects=tuple(files),
        max_items=4,
        layouts=(0.4, 0.4, 0.2),
        repeat_share=0.2,
        shape_share=0.0,
        text_share=0.0,
        photographs=files,
        photograph_share=1.0,
    )
    scene = draw_scene(rng, options)
    questions = ask(scene, rng, _CANDIDATES, tuple(OBJECTS))
    split = PHOTOGRAPHS if index % 2 else "photographed-kinds"
    return split, scene, [Asked(question, ()) for question in questions]


def _record(name: str, split: str, scene: Scene, asked: Asked) -> Record:
    question = asked.question
    record: Record = {"image": name, "question": question.question, "answer": question.answer, "type": question.type}
    record |= {"scope": question.scope, "split": split}
    if question.tally:
        record["tally"] = question.tally
    if asked.items:
        boxes = [_clipped(box_of(scene.items[index])) for index in asked.items]
        record |= {"where": list(covered(boxes, GRID, GRID)), "boxes": boxes}
    return record


def _clipped(box: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Whole pixels, as fractions of the side."""
    left, top, right, bottom = (round(min(max(side, 0.0), 1.0) * CANVAS) / CANVAS for side in box)
    return round(left, 5), round(top, 5), round(right, 5), round(bottom, 5)
