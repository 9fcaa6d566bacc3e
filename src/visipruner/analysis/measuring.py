"""A full analysis over many samples: one file a sample, so that nothing finished is ever done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visipruner.analysis.parts import PARTS, Context, Plan, check_parts
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.chat import chat_inputs
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import is_right
from visipruner.files import write_json
from visipruner.images import open_image

SAMPLE_FOLDER = "samples"
SETTINGS_FILE = "settings.json"
_FORMAT = 4

Record = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What to analyse.

    Attributes:
        model: its name, as the report shows it. dtype, attn: as it was loaded. weights: their `fingerprint`.
        parts: names from `PARTS`. max_new_tokens: longest answer.
    """

    model: str
    dtype: str
    attn: str
    parts: tuple[str, ...] = tuple(PARTS)
    max_new_tokens: int = 32
    weights: str = ""

    def __post_init__(self) -> None:
        check_parts(self.parts)


def measure(
    model: Any, processor: Any, samples: Sequence[Sample], task: Task, folder: Path | None = None
) -> Iterator[Record]:
    """Yields one record a sample, measured now or read from `folder` where an earlier run left it.

    Without a folder nothing is written or looked for.

    Raises:
        ConfigError: `folder` holds an analysis of something else.
    """
    if folder is not None:
        check_folder(folder, task)
    with Probe(model) as probe:
        for number, sample in enumerate(samples):
            path = None if folder is None else folder / SAMPLE_FOLDER / f"{_key(sample)}.json"
            record = {} if path is None else _load(path)
            missing = [part for part in task.parts if part not in record.get("parts", {})]
            if missing:
                record = _measure_one(probe, processor, sample, _other(samples, number), task, missing, record)
                if path is not None:
                    write_json(path, record, indent=None)
            # An earlier run may have found the image elsewhere, and the data may name another kind of question by now.
            yield record | {"image": str(sample.image), "type": sample.type}


def _measure_one(
    probe: Probe,
    processor: Any,
    sample: Sample,
    other: Sample | None,
    task: Task,
    missing: list[str],
    record: Record,
) -> Record:
    started = time.perf_counter()
    picture = open_image(sample.image)

    def read(image: Image.Image, **settings: Any) -> Reading:
        return probe.read(chat_inputs(probe.model, processor, image, sample.question), **settings)

    def read_other() -> Reading:
        """The same question about another picture, of the same size and so with tokens at the same rows."""
        grey = Image.new("RGB", picture.size, "gray")
        return read(grey if other is None else open_image(other.image).resize(picture.size), max_new_tokens=1)

    reading = read(
        picture,
        tokenizer=processor.tokenizer,
        right=sample.answers[0] if sample.answers else None,
        judge=lambda given, right: any(is_right(given, answer) for answer in sample.answers),
        max_new_tokens=task.max_new_tokens,
    )
    plan = Plan.for_model(probe.num_layers, len(reading.visual))
    context = Context(probe, reading, plan, processor.tokenizer, read_other)
    seconds = dict(record.get("seconds", {"reading": time.perf_counter() - started}))
    parts = dict(record.get("parts", {}))
    for part in missing:
        started = time.perf_counter()
        parts[part] = PARTS[part](context)
        seconds[part] = round(time.perf_counter() - started, 3)
    return {
        "image": str(sample.image),
        "question": sample.question,
        "answers": list(sample.answers),
        "type": sample.type,
        "answer": reading.answer.text,
        "is_right": reading.is_right,
        "prompt_rows": reading.prompt_length,
        "visual_tokens": len(reading.visual),
        "tokens_per_image": reading.layout.tokens_per_image,
        "grids": [None if grid is None else list(grid) for grid in reading.layout.grids],
        "plan": asdict(plan),
        "seconds": seconds,
        "parts": parts,
    }


def _other(samples: Sequence[Sample], number: int) -> Sample | None:
    """The next sample, from the front again after the last, with another picture; None where all have the same."""
    later = [*samples[number + 1 :], *samples[:number]]
    return next((other for other in later if other.image != samples[number].image), None)


def _key(sample: Sample) -> str:
    """A sample's file name; another question, answer or image (its name or its content) is another sample."""
    told = json.dumps([sample.image_name, sample.image_sha256, sample.question, sample.answers])
    return f"{sample.image.stem}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def _load(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def check_folder(folder: Path, task: Task) -> None:
    """Marks `folder` as this analysis's. Raises ConfigError where it holds another one.

    An interrupted analysis may go on only with the settings it began with; parts may be added.
    """
    settings = {key: value for key, value in asdict(task).items() if key != "parts"} | {"format_version": _FORMAT}
    path = folder / SETTINGS_FILE
    before = _load(path) or settings
    if before != settings:
        changed = "with another " + ", ".join(sorted(key for key in settings if before.get(key) != settings[key]))
        if before.get("format_version") != _FORMAT:
            changed = "of another version of visipruner"
        raise ConfigError(f"{folder} holds an analysis {changed}; choose another --out or delete it.")
    write_json(path, settings)
