"""Attributes that every thread has a value of its own of: `generate` may run in several threads on one model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Threads(threading.local):
    """Holds the values; a deep copy starts with none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class PerThread(Generic[T]):
    """Declares such an attribute, in a class whose instances have `threads`; `make` gives a thread's first value."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type[Any]) -> T:
        held = vars(instance.threads)
        if self._name not in held:
            held[self._name] = self._make()
        value: T = held[self._name]
        return value

    def __set__(self, instance: Any, value: T) -> None:
        vars(instance.threads)[self._name] = value
