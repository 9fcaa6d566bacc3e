"""Files for the servers that score a benchmark whose answers are not public."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visipruner.evaluation.datasets import Benchmark
from visipruner.progress import Progress

FOLDER = "submission"


def write(task: Benchmark, records: Sequence[dict[str, Any]], out: Path | None, progress: Progress) -> dict[str, str]:
    """One file a method in `out`/submission; by method its path relative to `out`. Notes what the reader must do."""
    if not task.server:
        return {}
    if out is None:
        progress.note(f"{task.title} is scored by {task.server}; give --out DIR to get the file for it.")
        return {}
    written: dict[str, str] = {}
    for number, name in enumerate(records[0]["given"]):
        stem = out / FOLDER / f"{task.name}-{number}-{re.sub(r'[^A-Za-z0-9_.]+', '-', name).strip('-')[:80]}"
        path = task.submission(records, name, stem)
        if path is not None:
            written[name] = str(path.relative_to(out))
    progress.note(f"{task.title} is scored by {task.server}: submit the files in {out / FOLDER}.")
    return written
