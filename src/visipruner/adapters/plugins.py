"""Adapters of other packages, found through the entry point group `visipruner.adapters`."""

from __future__ import annotations

from importlib.metadata import entry_points

from visipruner.adapters.base import Adapter
from visipruner.errors import VisiPrunerError

GROUP = "visipruner.adapters"


def installed() -> tuple[Adapter, ...]:
    """Every adapter that an installed package offers. Raises VisiPrunerError, naming it, where one cannot be loaded."""
    found = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            adapter = point.load()
        except Exception as error:
            raise VisiPrunerError(
                f"The adapter {point.value!r} of an installed package cannot be loaded ({type(error).__name__}: "
                f"{error}); repair or uninstall that package."
            ) from error
        if not isinstance(adapter, Adapter):
            raise VisiPrunerError(
                f"The entry point {point.value!r} in group {GROUP!r} is a {type(adapter).__name__}; it must be a "
                "visipruner.Adapter."
            )
        found.append(adapter)
    return tuple(found)
