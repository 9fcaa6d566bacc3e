"""Files of a benchmark's folder, with one sentence for everything that can be missing or broken."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option's letter from the given choices directly."


def read_text(path: Path) -> str:
    """A file's text. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text ({error}).") from error


def read_json(path: Path, *keys: str) -> Any:
    """A JSON file's content, with `keys` where any are given. Raises ConfigError."""
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); unpack or download it again.") from error
    if keys:
        check_keys(path, "its top level", content, keys)
    return content


def read_jsonl(path: Path, *keys: str) -> list[dict[str, Any]]:
    """One object a line, each with `keys`. Raises ConfigError that names the line."""
    records = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}, line {number} is not JSON ({error}); download the file again.") from error
        check_keys(path, f"line {number}", record, keys)
        records.append(record)
    if not records:
        raise ConfigError(f"{path} holds no questions; download it again.")
    return records


def read_questions(path: Path, folder: Path) -> list[Sample]:
    """LLaVA's question files without the answers, which others have: `question_id` is the id, `image` lies in `folder`.
    Raises ConfigError that names the line."""
    lines = read_jsonl(path, "question_id", "image", "text")
    return [Sample(folder / line["image"], line["text"], id=str(line["question_id"])) for line in lines]


def read_tsv(path: Path, *keys: str) -> list[dict[str, str]]:
    """One mapping a row by the names in the first row, of which `keys` must be there. Raises ConfigError."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # images are fields
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            rows = [{name: value or "" for name, value in row.items() if name} for row in reader]
            columns = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as a table with tabs ({error}).") from error
    missing = [key for key in keys if key not in columns]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}; is it the file that its benchmark distributes?")
    if not rows:
        raise ConfigError(f"{path} holds no questions; download it again.")
    return rows


def check_keys(path: Path, where: str, record: Any, keys: Sequence[str]) -> None:
    """Raises ConfigError when a record lacks one of `keys`."""
    missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
    if missing:
        raise ConfigError(
            f"{path}, {where} has no {', '.join(missing)}; is it the file that its benchmark distributes?"
        )


def needed(title: str, *candidates: Path) -> Path:
    """The first of `candidates` that is there. Raises ConfigError that says where `title` expects it."""
    for path in candidates:
        if path.exists():
            return path
    first, *others = candidates
    also = f" (nor {', '.join(map(str, others))})" if others else ""
    raise ConfigError(f"{title} is incomplete: there is no {first}{also}; docs/evaluation.md says what belongs there.")


def check_images(title: str, samples: Iterable[Sample]) -> None:
    """Raises ConfigError when images are missing, with the first and how many."""
    missing = sorted({sample.image for sample in samples if not sample.image.is_file()})
    if missing:
        raise ConfigError(
            f"{title} is incomplete: {len(missing)} of its images are missing, the first is {missing[0]}."
        )


def with_suffix(question: str, suffix: str) -> str:
    """`question` with the instruction on a line of its own, unless it has it already."""
    return question if suffix in question else f"{question}\n{suffix}"
