"""Tables that hold their images as base64: MMBench and MMStar."""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.choices import MultipleChoice
from visipruner.evaluation.datasets.reading import with_suffix
from visipruner.evaluation.samples import Sample
from visipruner.files import write_atomic

_LONGEST_REFERENCE = 64
_NOTHING = {"", "nan", "none"}


class EmbeddedImages(MultipleChoice):
    """Decodes the images of the samples that are asked, and no others, into a folder."""

    def __init__(
        self,
        questions: Path,
        samples: Sequence[Sample],
        encoded: Mapping[Path, str],
        temporary: tempfile.TemporaryDirectory[str] | None,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(questions, samples, notes)
        self._encoded = encoded
        self._temporary = temporary  # goes when this object goes

    def prepare(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            path = sample.image
            if path.exists():
                continue
            try:
                content = base64.b64decode(self._encoded[path], validate=True)
            except binascii.Error as error:
                raise ConfigError(f"{self.questions}: the image of row {sample.id} is not base64 ({error}).") from error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, partial(_write, content))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def image_folder(images: Path | None) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Where to decode to, and what holds that place when it is a temporary one."""
    if images is not None:
        return images, None
    temporary = tempfile.TemporaryDirectory(prefix="visipruner-")
    return Path(temporary.name), temporary


def image_of(rows: Mapping[str, Mapping[str, str]], row: Mapping[str, str], folder: Path) -> tuple[Path, str]:
    """The file a row's image goes to, and its base64. A short text is the index of the row that has the image.

    The file is named by the hash of the base64: rows with the same image share it, whatever table they are from.
    """
    key, seen = row["index"], set()
    while len(rows[key]["image"]) <= _LONGEST_REFERENCE and key not in seen:
        seen.add(key)
        key = rows[key]["image"] if rows[key]["image"] in rows else key
    encoded = rows[key]["image"]
    suffix = "png" if encoded.startswith("iVBOR") else "jpg"
    return folder / f"{hashlib.sha256(encoded.encode()).hexdigest()[:16]}.{suffix}", encoded


def prompt_of(row: Mapping[str, str], instruction: str) -> str:
    """Hint, question, options by letter, instruction."""
    lines = [] if is_nothing(row.get("hint", "")) else [row["hint"]]
    lines.append(row["question"])
    for name in "ABCDEFGH":
        if is_nothing(row.get(name, "")):
            break
        lines.append(f"{name}. {row[name]}")
    return with_suffix("\n".join(lines), instruction)


def is_nothing(value: str) -> bool:
    """How such tables say that a cell is empty."""
    return value.strip().lower() in _NOTHING
