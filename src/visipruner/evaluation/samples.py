"""Image-question pairs from a JSONL file, for all that runs over data, and which visual tokens hold an answer."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visipruner.accounting.record import ExampleTrace
from visipruner.errors import ConfigError
from visipruner.files import exists, sha256_of
from visipruner.questions import check_signs, check_text

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Sample:
    """One question about one image.

    Attributes:
        image: its file. answers: accepted answers, the preferred one first; empty where none is known.
        type: kind of question, for tables; "" where the data do not say.
        id: tells samples apart that are otherwise equal; "" where none are.
        name: of the image in records, the same on every machine; "" for the whole path.
        where: visual tokens that hold the answer, numbered line by line as the model's prompt has them; empty where
            the data do not say. boxes: the same in the picture, left, top, right and bottom in fractions of its width
            and height, for models with other tokens.
        place: where it was read, for messages.
    """

    image: Path
    question: str
    answers: tuple[str, ...] = ()
    type: str = ""
    id: str = ""
    name: str = ""
    where: tuple[int, ...] = field(default=(), compare=False)
    boxes: tuple[Box, ...] = field(default=(), compare=False)
    place: str = field(default="", compare=False)

    @property
    def image_name(self) -> str:
        """What records call the image."""
        return self.name or str(self.image)

    @property
    def image_sha256(self) -> str:
        """Of the image file's content. Raises ConfigError."""
        try:
            return sha256_of(self.image)
        except OSError as error:
            raise ConfigError(f"{self.image} cannot be read as an image ({error}).") from error

    def named_from(self, folder: Path) -> Sample:
        """The sample with its image named relative to `folder`; as it is where the image lies elsewhere."""
        if self.name or not self.image.is_relative_to(folder):
            return self
        return replace(self, name=self.image.relative_to(folder).as_posix())


def load_samples(path: Path) -> list[Sample]:
    """Reads one JSON object a line: `image` (relative to the file), `question`, `answer` or `answers`, `type`, `where`
    and `boxes` (as `Sample` has them).

    Only `image` and `question` are needed. Images that lie in the file's folder are named relative to it. Raises
    ConfigError that names the line when something is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # some editors begin a file with a byte-order mark
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error}); --data takes a JSONL file.") from error
    samples = [_sample(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise ConfigError(f"{path} holds no samples; it needs one JSON object a line with image and question.")
    return samples


def _sample(path: Path, number: int, line: str) -> Sample:
    place = f"{path}, line {number}"
    try:
        record: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON ({error}).") from error
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("image", "question")):
        raise ConfigError(f'{place} needs texts "image" and "question".')
    check_text(record["question"], f"{place}: the question")
    key = "answers" if "answers" in record else "answer"
    answers = record.get(key, [])
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ConfigError(
            f'{place}: "{key}" must be a text or a list of texts, not {json.dumps(record[key])[:60]}; leave it out '
            "where no answer is known."
        )
    image = path.parent / record["image"]
    if not exists(image) or not image.is_file():
        raise ConfigError(f"{place}: there is no image {image}.")
    kind = str(record.get("type", ""))
    tokens, boxes = _places(record, place)
    sample = Sample(image, record["question"], tuple(answers), kind, where=tokens, boxes=boxes, place=place)
    return sample.named_from(path.parent)


def _places(record: Mapping[str, Any], place: str) -> tuple[tuple[int, ...], tuple[Box, ...]]:
    """The tokens and boxes that hold a record's answer. Raises ConfigError where they are none."""
    tokens, boxes = record.get("where", []), record.get("boxes", [])
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise ConfigError(f'{place}: "where" must be a list of the numbers of visual tokens, from 0.')
    if not isinstance(boxes, list) or not all(_is_box(box) for box in boxes):
        raise ConfigError(
            f'{place}: "boxes" must be lists of left, top, right and bottom, as fractions of the picture.'
        )
    return tuple(sorted(set(tokens))), tuple((box[0], box[1], box[2], box[3]) for box in boxes)


def _is_box(box: Any) -> bool:
    is_four = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    return is_four and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def check_questions(samples: Sequence[Sample], processor: Any) -> None:
    """Raises ConfigError for the first sample that the model of `processor` cannot be asked, before any is."""
    for sample in samples:
        where = sample.place or f"{sample.id or sample.question[:40]!r} about {sample.image_name}"
        check_text(sample.question, f"{where}: the question")
        check_signs(processor, sample.question, f"{where}: the question")


def spread(samples: Sequence[Sample], count: int, seed: int = 0, per_image: int = 2) -> list[Sample]:
    """`count` samples (all where there are fewer) over as many images and kinds of questions as can be, the rarest
    kinds so far first: at most `per_image` of an image while there are others. A smaller `count` gives the first of a
    larger."""
    order = random.Random(seed)
    by_image: dict[Path, list[Sample]] = {}
    for sample in samples:
        by_image.setdefault(sample.image, []).append(sample)
    for group in by_image.values():
        order.shuffle(group)
    images = list(by_image)
    order.shuffle(images)
    chosen: list[Sample] = []
    seen: Counter[str] = Counter()
    while len(chosen) < min(count, len(samples)):
        for image in images:
            for _ in range(per_image):
                group = by_image[image]
                if group and len(chosen) < count:
                    rarest = min(group, key=lambda sample: seen[sample.type])
                    group.remove(rarest)
                    seen[rarest.type] += 1
                    chosen.append(rarest)
    return chosen


_COVERED = 0.25


def covered(boxes: Sequence[Box], rows: int, columns: int) -> tuple[int, ...]:
    """The cells of a `rows` x `columns` grid, numbered line by line, that hold what lies in `boxes`.

    A cell counts where one box covers a quarter of it or more; besides, each box has the cell it covers most of, the
    first of several. `boxes` are left, top, right and bottom in fractions of the picture's width and height.
    """
    found: set[int] = set()
    for left, top, right, bottom in boxes:
        across = [max(0.0, min(right * columns, at + 1) - max(left * columns, at)) for at in range(columns)]
        down = [max(0.0, min(bottom * rows, at + 1) - max(top * rows, at)) for at in range(rows)]
        shares = [high * wide for high in down for wide in across]
        found.add(shares.index(max(shares)))
        found |= {cell for cell, share in enumerate(shares) if share >= _COVERED}
    return tuple(sorted(found))


def critical_tokens(sample: Sample, traced: ExampleTrace) -> tuple[int, ...]:
    """Of the prompt's visual tokens those that hold the answer: of the sample's boxes on the image's grid, where both
    are known, else its `where`; empty where it has neither, or `where` is of another number of tokens."""
    if sample.boxes and len(traced.grids) == 1 and traced.grids[0] is not None:
        return covered(sample.boxes, *traced.grids[0])
    is_whole = traced.unseen_visual == 0 and max(sample.where, default=0) < traced.num_visual
    return sample.where if is_whole else ()


def share_left(critical: Sequence[int], traced: ExampleTrace) -> list[float]:
    """By layer the share of the critical tokens that enter it; a merged token counts as the one whose place it has."""
    return [len(set(critical) & set(kept)) / len(critical) for kept in traced.kept[:-1]]
