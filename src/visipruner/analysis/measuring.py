"""A full analysis over many samples: its parts, and one file a sample, so that nothing finished is done twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from visipruner.analysis import gaze, knockout, scores
from visipruner.analysis.probe import Probe
from visipruner.analysis.reading import Reading
from visipruner.analysis.result import Result, plain
from visipruner.chat import chat_inputs
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample
from visipruner.evaluation.scoring import right_by_any
from visipruner.files import write_json
from visipruner.images import open_image

# Parts of the image's tokens that are tried as budgets: to compare scores, and of influence.
SCORED, TRIED = (32, 8), (32, 16, 8, 4)


@dataclass(frozen=True)
class Plan:
    """What the parts try, from the size of the model and the image.

    Attributes:
        window: layers in a moving window. shallow: first layers whose visual content is tested.
        block: layers in a block that is frozen as one.
        stride: layers between tries of the dearer experiments.
        scored: budgets at which scores are compared. budgets: those at which influence is tried.
    """

    window: int
    shallow: int
    block: int
    stride: int
    scored: tuple[int, ...]
    budgets: tuple[int, ...]

    @classmethod
    def for_model(cls, num_layers: int, num_visual: int) -> Plan:
        """Windows of a tenth of the layers; budgets from a 32nd of the image to a quarter of it."""
        return cls(
            window=max(1, num_layers // 10),
            shallow=max(1, num_layers // 5),
            block=max(1, round(num_layers / 8)),
            stride=max(1, num_layers // 10),
            scored=tuple(max(1, num_visual // part) for part in SCORED),
            budgets=tuple(max(1, num_visual // part) for part in TRIED),
        )


@dataclass(frozen=True)
class Context:
    """What a part may use; `read_other` reads the same question with another picture of the same size."""

    probe: Probe
    reading: Reading
    plan: Plan
    tokenizer: Any
    read_other: Callable[[], Reading]

    @property
    def some_layers(self) -> range:
        """Layers for experiments that run the visual rows again, one layer at a time."""
        return range(0, self.probe.num_layers, 2 * self.plan.stride)


def _named(*results: Result) -> dict[str, Any]:
    return {result.name: result for result in results}


def _control(context: Context) -> dict[str, Any]:
    probe, reading, other = context.probe, context.reading, context.read_other()
    return {
        name: knockout.sweep(probe, reading, "window", window=window, how="swap", other=other)
        for name, window in (("swap_window", context.plan.window), ("swap_all", probe.num_layers))
    }


def _freeze_blocks(context: Context) -> dict[str, Any]:
    size = context.plan.block
    starts = range(0, context.probe.num_layers - size + 1, max(1, size // 2))
    return _named(knockout.freeze_blocks(context.probe, context.reading, starts, size))


def _cache(context: Context) -> dict[str, Any]:
    last = context.probe.num_layers
    third = max(1, last // 3)
    windows = [(0, third), (third, 2 * third), (2 * third, last), (0, last)]
    filled = [(first, end) for first, end in windows if first < end <= last]
    return _named(knockout.remove_from_cache(context.probe, context.reading, filled))


def _scores(context: Context) -> dict[str, Any]:
    probe, reading, plan = context.probe, context.reading, context.plan
    layers = range(0, probe.num_layers, plan.stride)
    compared = scores.compare_scores(probe, reading, layers[::2], plan.scored)  # in fewer layers: this is the dearest
    more = scores.compare_scores(probe, reading, layers, plan.budgets, ["influence"])
    return {"scores": compared, "budgets": more}


def _lens(context: Context) -> dict[str, Any]:
    found = gaze.logit_lens(context.probe, context.reading)
    decode = context.tokenizer.decode
    words = [[decode([token]) for token in layer] for layer in found["top"].values.tolist()]
    heads = []
    for layer in gaze.value_lens(context.probe, context.reading, top=3):
        surest = max(layer, key=lambda head: head.probability[0])
        heads.append({"head": surest.head, "words": [decode([token]) for token in surest.tokens]})
    return {**_named(found), "words": words, "heads": heads, "leading_layer": gaze.leading_layer(found)}


PARTS: dict[str, Callable[[Context], dict[str, Any]]] = {
    # Where the last row looks, sinks, norms of values.
    "attention": lambda context: _named(gaze.visual_attention(context.reading)),
    # Text -> visual edges cut below a layer, from a layer on, and in a window.
    "sweeps": lambda context: _named(
        knockout.sweep(context.probe, context.reading, "shallow_to_deep"),
        knockout.discard(context.probe, context.reading),
        knockout.sweep(context.probe, context.reading, "window", window=context.plan.window),
    ),
    # Text sees another picture's tokens, in a window and in all layers: what changes then is due to their content.
    "control": _control,
    # Mass or content: the paper's ablations in the first layers.
    "shallow": lambda context: _named(knockout.shallow_ablations(context.probe, context.reading, context.plan.shallow)),
    # Visual rows do not run in one layer, unseen in it or seen; or in several in a row, as losses do not add up.
    "skip": lambda context: _named(knockout.skip(context.probe, context.reading, context.some_layers)),
    "freeze": lambda context: _named(knockout.freeze(context.probe, context.reading, context.some_layers)),
    "freeze_blocks": _freeze_blocks,
    # Visual keys gone while decoding, by thirds of the layers (as many as there are layers) and everywhere.
    "cache": _cache,
    # The paper's score of every token in every layer.
    "influence": lambda context: _named(scores.token_influence(context.reading)),
    # Influence at every budget, and scores against each other at some.
    "scores": _scores,
    # What each layer would say, and the surest heads of each layer.
    "lens": _lens,
}
NEEDED_FOR_STAGES = ("sweeps", "control", "influence", "scores")


def check_parts(names: Iterable[str]) -> None:
    """Raises ConfigError for a part that does not exist."""
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"There is no part {', '.join(unknown)!r} of the analysis; parts are {', '.join(PARTS)}.")


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
        judge=lambda given, right: bool(right_by_any(given, sample.answers)),
        max_new_tokens=task.max_new_tokens,
    )
    plan = Plan.for_model(probe.num_layers, len(reading.visual))
    context = Context(probe, reading, plan, processor.tokenizer, read_other)
    seconds = dict(record.get("seconds", {"reading": time.perf_counter() - started}))
    parts = dict(record.get("parts", {}))
    for part in missing:
        started = time.perf_counter()
        parts[part] = plain(PARTS[part](context))
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
