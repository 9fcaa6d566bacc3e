"""Adapters of other packages, found through the entry point group `visipruner.adapters`."""

from __future__ import annotations

from visipruner import plugins
from visipruner.adapters.base import Adapter

GROUP = "visipruner.adapters"


def installed() -> tuple[Adapter, ...]:
    """Every adapter that an installed package offers. Raises VisiPrunerError, naming it, where one cannot be loaded."""
    return tuple(plugins.load(point, Adapter, "adapter") for point in plugins.offered(GROUP).values())
