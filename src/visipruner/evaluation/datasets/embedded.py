"""Benchmarks in one table that holds its images as base64: MMBench and MMStar."""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Record, answer_of, grouped, percent, whole_groups
from visipruner.evaluation.datasets.choices import LETTERS, MultipleChoice
from visipruner.evaluation.datasets.reading import LETTER_ANSWER, read_tsv, with_suffix
from visipruner.evaluation.samples import Sample
from visipruner.files import write_atomic

_CHINESE_LETTER_ANSWER = "请直接回答选项字母。"
_ROTATED = 1_000_000
_NOT_SUBMITTED = {"hint", "category", "source", "image", "comment", "l2-category"}
_LONGEST_REFERENCE = 64
_NOTHING = {"", "nan", "none"}


class EmbeddedImages(MultipleChoice):
    """Decodes the images of the samples that are asked, and no others, into a folder."""

    _encoded: Mapping[Path, str]
    _temporary: tempfile.TemporaryDirectory[str] | None  # goes when this object goes

    @classmethod
    def from_table(cls, questions: Path, images: Path | None, keys: Sequence[str], instruction: str) -> Self:
        """One sample a row; `keys` are the columns that must be there besides index, question and image."""
        rows = {row["index"]: row for row in read_tsv(questions, "index", "question", *keys, "image")}
        folder, temporary = images, None
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="visipruner-")
            folder = Path(temporary.name)
        samples, encoded = [], {}
        for row in rows.values():
            image, encoded_image = image_of(rows, row, folder)
            encoded[image] = encoded_image
            answers = () if is_nothing(row.get("answer", "")) else (row["answer"].strip(),)
            prompt, kind = prompt_of(row, instruction), row.get("category", "")
            samples.append(Sample(image, prompt, answers, kind, row["index"], name=image.name))
        found = cls(questions, samples)
        found._encoded, found._temporary = encoded, temporary
        return found

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
            write_atomic(path, partial(Path.write_bytes, data=content))


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
    for name in LETTERS:
        if is_nothing(row.get(name, "")):
            break
        lines.append(f"{name}. {row[name]}")
    return with_suffix("\n".join(lines), instruction)


def is_nothing(value: str) -> bool:
    """How such tables say that a cell is empty."""
    return value.strip().lower() in _NOTHING


class MmStar(EmbeddedImages):
    """MMStar (Chen et al. 2024, https://arxiv.org/abs/2403.20330): six categories of 250 questions.

    Read from VLMEvalKit's MMStar.tsv; the parquet file with the same questions is not read.
    """

    name = "mmstar"
    title = "MMStar"
    patterns: ClassVar[tuple[str, ...]] = ("MMStar*.tsv", "MMStar*.parquet")
    metric = "accuracy of the letter in each category, and their mean"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        if questions.suffix == ".parquet":
            raise ConfigError(
                f"{questions} is not read; put VLMEvalKit's MMStar.tsv, the same questions, in its place."
            )
        return cls.from_table(questions, images, ("answer", "category"), LETTER_ANSWER)

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        parts = self.accuracy_by_type(records, method)
        mean = sum(part["accuracy"] for part in parts.values()) / len(parts)
        return {"scores": {"mean of categories": mean}, "parts": parts}


class MmBench(EmbeddedImages):
    """MMBench (Liu et al. 2023, https://arxiv.org/abs/2307.06281), English and Chinese, dev and test.

    Rows whose index is a million or more apart are one question with its options rotated.
    """

    name = "mmbench"
    title = "MMBench"
    patterns: ClassVar[tuple[str, ...]] = ("mmbench_*.tsv",)
    metric = "accuracy of the letter: each question once (VanillaEval), and right under all rotations (CircularEval)"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        instruction = _CHINESE_LETTER_ANSWER if "cn" in questions.stem.lower() else LETTER_ANSWER
        found = cls.from_table(questions, images, ("A", "B"), instruction)
        if not all(sample.answers for sample in found.samples):
            found.server = "OpenCompass's MMBench server"
            _openpyxl()  # said before the work, not after it
        return found

    def choose(self, count: int, seed: int) -> list[Sample]:
        return whole_groups(self.samples, lambda sample: _question(sample.id), count, seed)

    def official(self, records: Sequence[Record], method: str) -> dict[str, Any]:
        if self.server:
            return {}
        once, all_right = self._evals(records, method)
        scores = {"vanilla": percent(value for value, _ in once)}
        if all_right:
            scores["circular"] = percent(value for value, _ in all_right)
        parts: dict[str, dict[str, float]] = {}
        for name, found in (("vanilla", once), ("circular", all_right)):
            for category in dict.fromkeys(kind for _, kind in found):
                parts.setdefault(category, {})[name] = percent(value for value, kind in found if kind == category)
        return {"scores": scores, "parts": parts}

    def _evals(self, records: Sequence[Record], method: str) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Score and category of each question asked once, and of each asked under all its rotations."""
        sizes = Counter(_question(sample.id) for sample in self.samples)
        once, all_right = [], []
        for key, members in grouped(records, lambda record: _question(record["id"])).items():
            kind = str(members[0]["type"])
            first = [record for record in members if record["id"] == key]
            once += [(score, kind) for score in self.scores(first, method)]
            if len(members) == sizes[key] and max(sizes.values()) > 1:
                all_right.append((min(self.scores(members, method)), kind))
        return once, all_right

    def submission(self, records: Sequence[Record], method: str, stem: Path) -> Path | None:
        if not self.server:
            return None
        rows = read_tsv(self.questions, "index")
        given = {record["id"]: answer_of(record, method) for record in records}
        columns = [name for name in rows[0] if name not in _NOT_SUBMITTED]
        columns.insert(1 + max(columns.index(name) for name in "ABCD" if name in columns), "prediction")
        book = _openpyxl().Workbook(write_only=True)
        sheet = book.create_sheet()
        sheet.append(columns)
        for row in rows:
            if row["index"] in given:
                told = {**row, "prediction": given[row["index"]]}
                sheet.append([_cell(sheet, name, told[name]) for name in columns])
        path = stem.with_name(f"{stem.name}.xlsx")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, book.save)
        return path


def _question(index: str) -> str:
    return str(int(index) % _ROTATED) if index.isdigit() else index


def _cell(sheet: Any, name: str, text: str) -> Any:
    """A number for the index, else text, whatever it looks like: no formula, no error, and no character that a
    spreadsheet cannot hold."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE, WriteOnlyCell

    if name == "index" and text.isdigit():
        return int(text)
    cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", text) or None)
    if cell.value is not None:
        cell.data_type = "s"
    return cell


def _openpyxl() -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise ConfigError(
            "MMBench's server takes a spreadsheet; install what writes it with: pip install 'visipruner[mmbench]'"
        ) from error
    return openpyxl
