"""The folder of an evaluation: whose it is, and a line for every sample that is done; nothing is lost or done twice.

`samples.jsonl` holds the records. Of several processes (`accelerate launch`, `torchrun`) each appends to a file of its
own, `samples.RANK.jsonl`; these are joined into `samples.jsonl` at the end, or at the start of the next run, whatever
its number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from visipruner.contract.pruner import Pruner
from visipruner.errors import ConfigError
from visipruner.evaluation.samples import Sample
from visipruner.files import ESCAPED, whole_lines, write_atomic, write_json

# Shares never end at the same moment, and gloo gives up after half an hour unless told otherwise.
_PATIENCE = timedelta(days=7)
# Where torchrun and the MPIs say how many they started; accelerate reads the same.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; by default it is alone.

    Attributes:
        rank: from 0; process 0 is the main one, which writes what all have done. count: how many there are.
    """

    rank: int = 0
    count: int = 1
    _state: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    @contextmanager
    def first_on_each_machine(self) -> Iterator[None]:
        """One process of each machine goes through the block before its others do."""
        if self._state is None:
            yield
        else:
            with self._state.local_main_process_first():
                yield


def launched() -> Processes:
    """The processes that this one was started with. They only wait for each other (gloo), so no GPU is needed."""
    if all(int(os.environ.get(name, "1")) < 2 for name in _COUNTS):
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes, state)


SAMPLES_FILE = "samples.jsonl"
SETTINGS_FILE = "settings.json"
_FORMAT = 3

Record = dict[str, Any]


def key_of(sample: Sample) -> str:
    """The same for the same image (its name and its file's content), question, answers and id."""
    told = json.dumps([sample.image_name, sample.image_sha256, sample.question, sample.answers, sample.id])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def claim(folder: Path, methods: Mapping[str, Pruner], identity: Mapping[str, Any]) -> None:
    """Marks the folder as this evaluation's. Raises ConfigError where it is another's, or does not say whose."""
    described = {name: {"method": pruner.name, "settings": pruner.settings()} for name, pruner in methods.items()}
    settings = json.loads(json.dumps({"format_version": _FORMAT, **identity, "methods": described}))
    path = folder / SETTINGS_FILE
    if not path.exists():
        if (folder / SAMPLES_FILE).exists():
            raise ConfigError(
                f"{folder} holds answers, but no {SETTINGS_FILE} that says what gave them; choose another --out or "
                "delete it."
            )
        write_json(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before.get("format_version") != _FORMAT:
        raise ConfigError(
            f"{folder} holds an evaluation of another version of visipruner; choose another --out or delete it."
        )
    changed = sorted(key for key in {*settings, *before} if before.get(key) != settings.get(key))
    if changed:
        raise ConfigError(
            f"{folder} holds an evaluation with other {', '.join(changed)}; choose another --out or delete it."
        )


def join(folder: Path, samples: Sequence[Sample]) -> dict[str, Record]:
    """Every finished record by key; `samples.jsonl` holds them all afterwards, in the order of `samples`, and alone.

    Raises ConfigError where records are about other pictures of the same names.
    """
    whole = folder / SAMPLES_FILE
    parts = sorted(folder.glob("samples.*.jsonl"))
    found = {key: record for path in (whole, *parts) for key, record in finished(path).items()}
    order = dict.fromkeys(key_of(sample) for sample in samples)
    asked = {(sample.image_name, sample.question, sample.answers, sample.id) for sample in samples}
    for key, record in found.items():
        told = (record["image"], record["question"], tuple(record["answers"]), record["id"])
        if key not in order and told in asked:
            raise ConfigError(
                f"{folder} holds answers about another picture called {told[0]}; choose another --out or delete it."
            )
    done = {key: found[key] for key in (*order, *found) if key in found}
    text = "".join(map(_line, done.values()))
    write_atomic(whole, lambda path: path.write_text(text, encoding="utf-8", errors=ESCAPED))
    for path in parts:
        path.unlink()
    return done


def finished(path: Path) -> dict[str, Record]:
    """The whole lines of a file by key; one cut off by an interruption does not count. Raises ConfigError that names a
    damaged one."""
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(whole_lines(path), 1):
        try:
            record = json.loads(line)
            found[record["key"]] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number} is damaged ({error}); delete that line, and its sample is asked again."
            ) from error
    return found


def append(folder: Path, record: Record, processes: Processes) -> None:
    name = SAMPLES_FILE if processes.count == 1 else f"samples.{processes.rank}.jsonl"
    with (folder / name).open("a", encoding="utf-8", errors=ESCAPED) as file:
        file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
