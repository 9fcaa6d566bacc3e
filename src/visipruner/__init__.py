"""visipruner: understand, prune and speed up the visual tokens of multimodal LLMs, on stock transformers.

    import visipruner as vp

    with vp.attach(model, vp.VisiPruner()) as handle:
        output = model.generate(**inputs)
    print(handle.trace)

Names are loaded when first used; importing this package changes nothing in transformers.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visipruner.adapters import Adapter
    from visipruner.engine.attach import PruneHandle, attach
    from visipruner.engine.trace import ExampleTrace, PruneTrace
    from visipruner.errors import ConfigError, LayoutError, UnsupportedModelError, VisiPrunerError
    from visipruner.pruners.base import PromptRun, Pruner
    from visipruner.pruners.none import NoPruning
    from visipruner.pruners.registry import load_pruner
    from visipruner.pruners.schedule import FixedSchedule
    from visipruner.pruners.visipruner import VisiPruner

_PUBLIC = {
    "Adapter": "adapters",
    "ConfigError": "errors",
    "ExampleTrace": "engine.trace",
    "FixedSchedule": "pruners.schedule",
    "LayoutError": "errors",
    "NoPruning": "pruners.none",
    "PromptRun": "pruners.base",
    "PruneHandle": "engine.attach",
    "PruneTrace": "engine.trace",
    "Pruner": "pruners.base",
    "UnsupportedModelError": "errors",
    "VisiPruner": "pruners.visipruner",
    "VisiPrunerError": "errors",
    "attach": "engine.attach",
    "load_pruner": "pruners.registry",
}
_ROOMS = ("accounting", "adapters", "analysis", "testbed")

__all__ = [
    "Adapter",
    "ConfigError",
    "ExampleTrace",
    "FixedSchedule",
    "LayoutError",
    "NoPruning",
    "PromptRun",
    "PruneHandle",
    "PruneTrace",
    "Pruner",
    "UnsupportedModelError",
    "VisiPruner",
    "VisiPrunerError",
    "attach",
    "load_pruner",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("visipruner")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"visipruner.{_PUBLIC[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"visipruner.{name}")
    raise AttributeError(f"module 'visipruner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
