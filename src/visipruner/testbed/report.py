"""Runs the test set and prints tables; what `visipruner testbed test` does."""

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from visipruner.errors import VisiPrunerError
from visipruner.testbed.evaluate import Row, answer, as_records, tabulate
from visipruner.testbed.testset import TEST_FOLDER, Sample, load_test_set


def run_test(
    folder: Path | None,
    checkpoint: Path | None,
    limit: int | None,
    batch_size: int,
    dtype: str,
    attn: str,
    image_size: int,
    blank: bool,
) -> dict[str, Any]:
    """Answer every question (and once more without the picture), print the table, return rows and answers as JSON.

    `checkpoint` is a training folder whose weights are tested in place of the shipped ones. Raises VisiPrunerError
    for a missing test set.
    """
    samples = _read(folder or TEST_FOLDER, limit)
    model, processor = _model(checkpoint, dtype, attn, image_size)
    began = time.monotonic()
    with tqdm(total=len(samples) * (1 + blank), desc="answering", unit="question", disable=None) as bar:
        answers = answer(model, processor, samples, batch_size, on_progress=bar.update)
        blanks = answer(model, processor, samples, batch_size, blank=True, on_progress=bar.update) if blank else None
    seconds = time.monotonic() - began
    rows = tabulate(samples, answers, blanks)
    _print(rows, seconds)
    given = [
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
    settings = {"dtype": dtype, "attn": attn, "image_size": image_size, "batch_size": batch_size}
    return {"settings": settings, "seconds": round(seconds, 1), "rows": as_records(rows), "answers": given}


def _read(folder: Path, limit: int | None) -> list[Sample]:
    try:
        samples = load_test_set(folder)
    except FileNotFoundError as error:
        raise VisiPrunerError(
            f"{folder} holds no test set; make one with `visipruner testbed draw --out {folder}`."
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
        from visipruner.testbed.build import load

        return load(dtype=dtype, attn_implementation=attn, image_size=image_size)
    from visipruner.testbed.assembly.llava import assemble
    from visipruner.testbed.assembly.trained import TRAINED_FILE, fold_trained, load_trained

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
