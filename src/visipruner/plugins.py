"""Objects that other installed packages offer through entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from visipruner.errors import VisiPrunerError

T = TypeVar("T")


def offered(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, sorted; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def load(point: EntryPoint, kind: type[T], what: str) -> T:
    """The object behind an entry point. Raises VisiPrunerError, naming it, where it cannot be imported or is no `kind`;
    `what` says in a word what it was to be."""
    try:
        found = point.load()
    except Exception as error:
        raise VisiPrunerError(
            f"The {what} {point.value!r} of an installed package cannot be loaded ({type(error).__name__}: {error}); "
            "repair or uninstall that package."
        ) from error
    if not isinstance(found, kind):
        raise VisiPrunerError(
            f"The entry point {point.value!r} in group {point.group!r} is a {type(found).__name__}; it must be a "
            f"{kind.__module__}.{kind.__name__}."
        )
    return found
