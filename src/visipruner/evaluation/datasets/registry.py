"""Which benchmark a folder holds, told by its question file; and how to say that it holds none, or several."""

from __future__ import annotations

import difflib
from fnmatch import fnmatch
from pathlib import Path

from visipruner.errors import ConfigError
from visipruner.evaluation.datasets.base import Benchmark
from visipruner.evaluation.datasets.easyvqa import PACKAGE, EasyVqa
from visipruner.evaluation.datasets.gqa import Gqa
from visipruner.evaluation.datasets.mmbench import MmBench
from visipruner.evaluation.datasets.mme import Mme
from visipruner.evaluation.datasets.mmstar import MmStar
from visipruner.evaluation.datasets.mmvet import MmVet
from visipruner.evaluation.datasets.pope import Pope
from visipruner.evaluation.datasets.scienceqa import ScienceQa
from visipruner.evaluation.datasets.seedbench import SeedBench
from visipruner.evaluation.datasets.textvqa import TextVqa
from visipruner.evaluation.datasets.vizwiz import VizWiz
from visipruner.evaluation.datasets.vqav2 import VqaV2

_ALL: tuple[type[Benchmark], ...] = (
    Gqa,
    Pope,
    TextVqa,
    VqaV2,
    VizWiz,
    ScienceQa,
    Mme,
    MmBench,
    MmStar,
    MmVet,
    SeedBench,
    EasyVqa,
)


def names() -> list[str]:
    """Every benchmark's name."""
    return [kind.name for kind in _ALL]


def recognises(path: Path) -> bool:
    """Whether `--data path` means a benchmark: a folder, a question file, or the name of a package with one."""
    if path.is_dir():
        return True
    if not path.exists():
        return str(path) == PACKAGE
    return any(_is_questions(kind, path) for kind in _ALL)


def open_benchmark(path: Path, name: str | None = None, images: Path | None = None) -> Benchmark:
    """The benchmark in a folder, or of one question file.

    Args:
        name: one of `names()`, to be read as even if the file has another name.
        images: a folder for images that the question file holds as text; without it a temporary one.

    Raises ConfigError in one sentence: what was looked for, what is missing, which of several to choose.
    """
    if name is not None and name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" There are: {', '.join(names())}."
        raise ConfigError(f"There is no benchmark {name!r}.{hint}")
    if name == PACKAGE or (str(path) == PACKAGE and not path.exists()):
        return EasyVqa.read(path, images)
    if not path.exists():
        raise ConfigError(f"There is no {path}; --data takes a JSONL file, a benchmark's folder, or {PACKAGE}.")
    kinds = [kind for kind in _ALL if name in (None, kind.name)]
    if path.is_file():
        kind = kinds[0] if name is not None else next((kind for kind in kinds if _is_questions(kind, path)), None)
        if kind is None:
            raise ConfigError(f"{path} is no benchmark's question file; say which it is: --benchmark NAME.")
        return kind.read(path, images)
    return _in_folder(path, kinds, images)


def _in_folder(folder: Path, kinds: list[type[Benchmark]], images: Path | None) -> Benchmark:
    found = [(kind, file) for kind in kinds for file in _questions(kind, folder)]
    if len(found) > 1:
        files = ", ".join(file.name for _, file in found)
        raise ConfigError(f"{folder} holds several question files ({files}); give one of them: --data {found[0][1]}.")
    if found:
        kind, file = found[0]
        return kind.read(file, images)
    if len(kinds) == 1:
        raise ConfigError(f"{folder} is not {kinds[0].title}'s: there is no {' or '.join(kinds[0].patterns)} in it.")
    below = [child.name for child in sorted(folder.iterdir()) if child.is_dir() and _holds_any(child)]
    if below:
        raise ConfigError(f"{folder} holds benchmarks in folders; give one of them: --data {folder / below[0]}.")
    wanted = ", ".join(f"{kind.patterns[0]} ({kind.name})" for kind in kinds if kind.patterns)
    raise ConfigError(f"{folder} holds no benchmark that is known; looked for {wanted}.")


def _holds_any(folder: Path) -> bool:
    return any(_questions(kind, folder) for kind in _ALL)


def _questions(kind: type[Benchmark], folder: Path) -> list[Path]:
    """The files of the first pattern that any file fits."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for pattern in kind.patterns:
        fitting = [path for path in files if fnmatch(path.name.lower(), pattern.lower())]
        if fitting:
            return fitting
    return []


def _is_questions(kind: type[Benchmark], path: Path) -> bool:
    return any(fnmatch(path.name.lower(), pattern.lower()) for pattern in kind.patterns)
