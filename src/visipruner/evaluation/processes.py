"""Several processes on one evaluation, as `accelerate launch` or `torchrun` start them, and where they wait."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

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
