"""Answers kept on disk while a test runs, so that an interrupted one goes on where it stopped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visipruner.errors import ConfigError
from visipruner.files import whole_lines
from visipruner_testbed.testset import Sample

_Key = tuple[str, str, str]


class AnswerLog:
    """Answers by pass ("answering", "without the picture", ...), picture and question, appended to `path` as soon as
    they are given.

    Args:
        path: the file, or None to keep nothing. settings: what the answers depend on.

    Raises ConfigError when the file holds the answers of a test with other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._given: dict[_Key, str] = {}
        if path is None:
            return
        lines = whole_lines(path) if path.exists() else []
        first, *others = [json.loads(line) for line in lines] or [None]
        if first is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        elif first != settings:
            raise ConfigError(
                f"{path} holds answers of an unfinished test with other settings; finish that or delete it."
            )
        elif not path.read_bytes().endswith(b"\n"):  # the interruption came while it was written
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        self._given = {(record["pass"], record["image"], record["question"]): record["given"] for record in others}

    def known(self, name: str, samples: Sequence[Sample]) -> list[str] | None:
        """The answers to all of `samples`, or None where one is missing."""
        given = [self._given.get(_key(name, sample)) for sample in samples]
        return None if None in given else [str(text) for text in given]

    def note(self, name: str, samples: Sequence[Sample], answers: Sequence[str]) -> None:
        """Keeps those answers that are new."""
        given = {_key(name, sample): text for sample, text in zip(samples, answers, strict=True)}
        lines = [
            json.dumps({"pass": key[0], "image": key[1], "question": key[2], "given": text}, ensure_ascii=False) + "\n"
            for key, text in given.items()
            if key not in self._given
        ]
        self._given |= given
        if self._path is not None and lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def remove(self) -> None:
        """The test is finished and its results are saved."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _key(name: str, sample: Sample) -> _Key:
    return name, str(sample.image), sample.question
