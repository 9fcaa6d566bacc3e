"""Runs the test set and prints tables; what `visipruner testbed test` does."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from visipruner.errors import ConfigError, VisiPrunerError
from visipruner.evaluation.scoring import is_right
from visipruner.files import sha256_of, write_json
from visipruner.models.heads import give_whole_rows
from visipruner_testbed.answerlog import AnswerLog
from visipruner_testbed.assembly.trained import TRAINED_FILE, WEIGHTS_FOLDER
from visipruner_testbed.evaluate import Row, answer, as_records, tabulate
from visipruner_testbed.testset import DATA_FOLDER, PARTS, TEST_FOLDER, Sample, load_test_set


def folders_of(parts: Sequence[str], folder: Path | None = None) -> list[Path]:
    """Where the shipped `parts` are, or the test set where none is named, or `folder` instead.

    Raises ConfigError for a part that does not exist, and where both are given.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise ConfigError(f"There is no part {unknown[0]!r} of the test set; there are {', '.join(PARTS)}.")
    if parts and folder is not None:
        raise ConfigError("Give --part or --folder, not both.")
    return [DATA_FOLDER / part for part in dict.fromkeys(parts)] or [folder or TEST_FOLDER]


def run_test(
    folders: Sequence[Path],
    checkpoint: Path | None,
    limit: int | None,
    batch_size: int,
    dtype: str,
    attn: str,
    image_size: int,
    blank: bool,
    easy_vqa: bool = False,
    others: Sequence[tuple[str, str]] = (),
    json_file: Path | None = None,
) -> None:
    """Answer every question (the drawn ones once more without the picture), print the tables, and write them and the
    answers to `json_file`; a run that is interrupted before goes on from what it has answered.

    The questions are those of all `folders`. `checkpoint` is a training folder whose weights are tested in place of
    the shipped ones, `easy_vqa` adds that benchmark's test part, `others` are pairs of dtype and attention
    implementation in which "scenes" are answered again. Raises VisiPrunerError for a missing test set, ConfigError for
    a missing easy-VQA or an unfinished test with other settings.
    """
    drawn = [sample for folder in folders for sample in _read(folder, limit)]
    samples = drawn + (_easy_vqa(limit) if easy_vqa else [])
    settings = {"dtype": dtype, "attn": attn, "image_size": image_size, "batch_size": batch_size}
    log = AnswerLog(
        None if json_file is None else json_file.with_suffix(".unfinished.jsonl"),
        {**settings, "weights": sha256_of((checkpoint or WEIGHTS_FOLDER) / TRAINED_FILE)},
    )
    loaded = _model(checkpoint, dtype, attn, image_size)
    began = time.monotonic()
    answers = _answered("answering", loaded, samples, batch_size, log)
    blanks: list[str | None] = [None] * len(samples)
    if blank:
        blanks[: len(drawn)] = _answered("without the picture", loaded, drawn, batch_size, log, blank=True)
    seconds = time.monotonic() - began
    rows = tabulate(samples, answers, blanks)
    _print(rows, seconds)
    own = [i for i, sample in enumerate(samples) if sample.split == "scenes"]
    scenes, first = [samples[i] for i in own], [answers[i] for i in own]
    again = []
    for other_dtype, other_attn in others if own else ():
        loaded = _model(checkpoint, other_dtype, other_attn, image_size)
        given = _answered(f"{other_dtype}, {other_attn}", loaded, scenes, batch_size, log)
        again.append(_compared(other_dtype, other_attn, scenes, given, first))
        print(_in_words(again[-1]))
    if json_file is None:
        return
    records = [
        {
            "image": sample.image.name,
            "question": sample.question,
            "answer": sample.answer,
            "given": text,
            "type": sample.type,
            "split": sample.split,
        }
        for sample, text in zip(samples, answers, strict=True)
    ]
    result = {
        "settings": settings,
        "seconds": round(seconds, 1),
        "rows": as_records(rows),
        "others": again,
        "answers": records,
    }
    write_json(json_file, result)
    log.remove()


def _answered(
    name: str, loaded: tuple[Any, Any], samples: Sequence[Sample], batch_size: int, log: AnswerLog, blank: bool = False
) -> list[str]:
    """The answers of one pass over `samples`, those that `log` has taken from it."""
    with give_whole_rows(loaded[0]), tqdm(total=len(samples), desc=name, unit="question", disable=None) as bar:

        def note(asked: Sequence[Sample], given: Sequence[str]) -> None:
            log.note(name, asked, given)
            bar.update(len(asked))

        return answer(*loaded, samples, batch_size, blank, note, partial(log.known, name))


def _compared(
    dtype: str, attn: str, samples: Sequence[Sample], given: Sequence[str], first: Sequence[str]
) -> dict[str, Any]:
    """Accuracy in another precision or attention implementation, and how many answers are the first run's."""
    right = sum(is_right(text, sample.answer) for text, sample in zip(given, samples, strict=True))
    before = sum(is_right(text, sample.answer) for text, sample in zip(first, samples, strict=True))
    return {
        "dtype": dtype,
        "attn": attn,
        "questions": len(samples),
        "accuracy": right / len(samples),
        "difference": (right - before) / len(samples),
        "same_answer": sum(one == other for one, other in zip(given, first, strict=True)) / len(samples),
    }


def _in_words(run: dict[str, Any]) -> str:
    return (
        f"scenes in {run['dtype']}, {run['attn']}: {100 * run['accuracy']:.1f} % ({100 * run['difference']:+.2f}); "
        f"{100 * run['same_answer']:.1f} % of the answers are the same"
    )


def _easy_vqa(limit: int | None) -> list[Sample]:
    """easy-VQA's test part as a split of its own; one shape in each picture holds every answer."""
    from visipruner.evaluation.datasets.easyvqa import PACKAGE, EasyVqa

    read = EasyVqa.read(Path(PACKAGE), None).samples
    images = set(sorted({sample.image for sample in read})[:limit])
    asked = sorted((sample for sample in read if sample.image in images), key=lambda sample: sample.image)
    return [Sample(one.image, one.question, one.answers[0], PACKAGE, "local", PACKAGE) for one in asked]


def _read(folder: Path, limit: int | None) -> list[Sample]:
    try:
        samples = load_test_set(folder)
    except FileNotFoundError as error:
        raise VisiPrunerError(
            f"{folder} holds no test set; draw one with `python -m research draw --out {folder}` in a checkout."
        ) from error
    if limit is None:
        return samples
    kept = {
        image
        for split in {s.split for s in samples}
        for image in list(dict.fromkeys(s.image for s in samples if s.split == split))[:limit]
    }
    return [sample for sample in samples if sample.image in kept]


def _model(checkpoint: Path | None, dtype: str, attn: str, image_size: int) -> tuple[Any, Any]:
    if checkpoint is None:
        from visipruner_testbed.build import load

        return load(dtype=dtype, attn_implementation=attn, image_size=image_size)
    from visipruner_testbed.assembly.llava import assemble
    from visipruner_testbed.assembly.trained import fold_trained, load_trained

    assembled = assemble(image_size)
    fold_trained(assembled.model, load_trained(checkpoint / TRAINED_FILE))
    assembled.model.set_attn_implementation(attn)
    return assembled.model.to(getattr(torch, dtype)), assembled.processor


def _print(rows: list[Row], seconds: float) -> None:
    table = Table(title="Accuracy on the testbed's test set (%)")
    for column in ("type", "scope", "n", "model", "95 % CI", "blanked", "majority"):
        table.add_column(column, justify="left" if column in ("type", "scope") else "right", no_wrap=True)
    for row in rows:
        low, high = row.interval
        table.add_row(
            row.name,
            row.scope,
            str(row.total),
            f"{100 * row.right / row.total:.1f}",
            f"{100 * low:.0f}-{100 * high:.0f}",
            "-" if row.blank is None else f"{100 * row.blank / row.total:.1f}",
            f"{100 * row.majority / row.total:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{seconds:.0f} s")
