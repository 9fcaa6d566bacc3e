"""MMBench (Liu et al. 2023, https://arxiv.org/abs/2307.06281), English and Chinese, dev and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Record, answer_of, grouped, percent, whole_groups
from visipruner.evaluation.datasets.embedded import EmbeddedImages, image_folder, image_of, is_nothing, prompt_of
from visipruner.evaluation.datasets.reading import LETTER_ANSWER, read_tsv
from visipruner.evaluation.samples import Sample
from visipruner.files import write_atomic

_CHINESE_LETTER_ANSWER = "请直接回答选项字母。"
_ROTATED = 1_000_000
_NOT_SUBMITTED = {"hint", "category", "source", "image", "comment", "l2-category"}


class MmBench(EmbeddedImages):
    """Rows whose index is a million or more apart are one question with its options rotated."""

    name = "mmbench"
    title = "MMBench"
    patterns: ClassVar[tuple[str, ...]] = ("mmbench_*.tsv",)
    metric = "accuracy of the letter: each question once (VanillaEval), and right under all rotations (CircularEval)"

    @classmethod
    def read(cls, questions: Path, images: Path | None) -> Self:
        rows = {row["index"]: row for row in read_tsv(questions, "index", "question", "A", "B", "image")}
        instruction = _CHINESE_LETTER_ANSWER if "cn" in questions.stem.lower() else LETTER_ANSWER
        folder, temporary = image_folder(images)
        samples, encoded = [], {}
        for row in rows.values():
            image, text = image_of(rows, row, folder)
            encoded[image] = text
            answers = () if is_nothing(row.get("answer", "")) else (row["answer"].strip(),)
            prompt, kind = prompt_of(row, instruction), row.get("category", "")
            samples.append(Sample(image, prompt, answers, kind, row["index"], name=image.name))
        found = cls(questions, samples, encoded, temporary)
        if not all(sample.answers for sample in samples):
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
        sizes: dict[str, int] = {}
        for sample in self.samples:
            sizes[_question(sample.id)] = sizes.get(_question(sample.id), 0) + 1
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
