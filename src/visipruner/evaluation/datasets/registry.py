"""Which benchmark a folder holds, told by its question file; and how to say that it holds none, or several.

A benchmark is found by being there: a subclass of `Benchmark` with a `name` in a file of this folder, or in another
distribution that names it as an entry point of the group `visipruner.datasets`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

from visipruner import plugins
from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark, Record
from visipruner.evaluation.samples import load_samples
from visipruner.evaluation.scoring import right_by_any
from visipruner.words import did_you_mean

GROUP = "visipruner.datasets"
Kind = type[Benchmark]


class OwnQuestions(Benchmark):
    """Image-question pairs of one's own in a JSONL file, as `load_samples` reads it; answers may be unknown."""

    name = "own"
    title = "own questions"
    patterns: ClassVar[tuple[str, ...]] = ()
    metric = "normalised exact match with any accepted answer"

    @classmethod
    def read(cls, questions: Path, images: Path | None = None) -> Self:
        return cls(questions, load_samples(questions))

    def score(self, record: Record, answer: str) -> float | None:
        return right_by_any(answer, record["answers"])


@cache
def kinds() -> tuple[Kind, ...]:
    """Every benchmark, this package's first, each in alphabetical order. Raises ConfigError for a plug-in that is
    none."""
    found: dict[str, Kind] = {}
    for kind in (*sorted(_ours(), key=lambda kind: kind.name), *_plugged_in()):
        found.setdefault(kind.name, kind)
    return tuple(found.values())


def _ours() -> Iterator[Kind]:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        for value in vars(importlib.import_module(module.name)).values():
            is_kind = isinstance(value, type) and issubclass(value, Benchmark) and value is not OwnQuestions
            if is_kind and value.__module__ == module.name and "name" in vars(value):
                yield value


def _plugged_in() -> Iterator[Kind]:
    for entry in plugins.offered(GROUP).values():
        kind = plugins.load(entry, type, "benchmark")
        if not (issubclass(kind, Benchmark) and hasattr(kind, "name")):
            raise ConfigError(
                f"The entry point {entry.value!r} in group {GROUP!r} must be a subclass of "
                "visipruner.evaluation.datasets.Benchmark with a name."
            )
        yield kind


def names() -> list[str]:
    return [kind.name for kind in kinds()]


def is_package(path: Path) -> bool:
    """Whether `--data path` names a package that holds a benchmark, and nothing of that name lies here."""
    return not path.exists() and str(path) in _packages()


def _packages() -> dict[str, Kind]:
    return {kind.package: kind for kind in kinds() if kind.package}


def recognises(path: Path) -> bool:
    """Whether `--data path` means a benchmark: a folder, a question file, or the name of a package with one."""
    return path.is_dir() or is_package(path) or (path.exists() and any(_is_questions(kind, path) for kind in kinds()))


def open_benchmark(path: Path, name: str | None = None, images: Path | None = None) -> Benchmark:
    """The benchmark in a folder, or of one question file; `name`: one of `names()`, to be read as whatever the file is
    called. `images`: a folder for images that the question file holds as text; None for a temporary one.

    Raises ConfigError in one sentence: what was looked for, what is missing, which of several to choose.
    """
    if name is not None and name not in names():
        hint = did_you_mean(name, names()) or f" There are: {', '.join(names())}."
        raise ConfigError(f"There is no benchmark {name!r}.{hint}")
    packages = _packages()
    if name in packages or is_package(path):
        return packages[name or str(path)].read(path, images)
    if not path.exists():
        known = ", or ".join(["a benchmark's folder", *packages])
        raise ConfigError(f"There is no {path}; --data takes a JSONL file, {known}.")
    wanted = [kind for kind in kinds() if name in (None, kind.name)]
    if path.is_file():
        kind = wanted[0] if name is not None else next((kind for kind in wanted if _is_questions(kind, path)), None)
        if kind is None:
            raise ConfigError(f"{path} is no benchmark's question file; say which it is: --benchmark NAME.")
        return kind.read(path, images)
    return _in_folder(path, wanted, images)


def open_data(path: Path, name: str | None = None, images: Path | None = None) -> Benchmark:
    """`open_benchmark` where `path` is or is said to be one, else the questions of one's own in a JSONL file."""
    if name is not None or recognises(path):
        return open_benchmark(path, name, images)
    return OwnQuestions.read(path)


def _in_folder(folder: Path, wanted: list[Kind], images: Path | None) -> Benchmark:
    found = [(kind, file) for kind in wanted for file in _questions(kind, folder)]
    if len(found) > 1:
        files = ", ".join(file.name for _, file in found)
        raise ConfigError(f"{folder} holds several question files ({files}); give one of them: --data {found[0][1]}.")
    if found:
        kind, file = found[0]
        return kind.read(file, images)
    if len(wanted) == 1:
        raise ConfigError(f"{folder} is not {wanted[0].title}'s: there is no {' or '.join(wanted[0].patterns)} in it.")
    below = [
        child.name
        for child in sorted(folder.iterdir())
        if child.is_dir() and any(_questions(kind, child) for kind in kinds())
    ]
    if below:
        raise ConfigError(f"{folder} holds benchmarks in folders; give one of them: --data {folder / below[0]}.")
    looked_for = ", ".join(f"{kind.patterns[0]} ({kind.name})" for kind in wanted if kind.patterns)
    raise ConfigError(f"{folder} holds no benchmark that is known; looked for {looked_for}.")


def _questions(kind: Kind, folder: Path) -> list[Path]:
    """The files of the first pattern that any file fits."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern in kind.patterns:
        fitting = [path for path in files if fnmatch(path.name.lower(), pattern.lower())]
        if fitting:
            return fitting
    return []


def _is_questions(kind: Kind, path: Path) -> bool:
    return any(fnmatch(path.name.lower(), pattern.lower()) for pattern in kind.patterns)
