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
    from visipruner.accounting.record import ExampleTrace
    from visipruner.adapters import Adapter
    from visipruner.contract.pruner import PromptRun, Pruner
    from visipruner.engine.attach import PruneHandle, attach
    from visipruner.engine.trace import PruneTrace
    from visipruner.errors import ConfigError, LayoutError, UnsupportedModelError, VisiPrunerError
    from visipruner.evaluation.runner import evaluate
    from visipruner.pruners.capa import Capa
    from visipruner.pruners.cdpruner import CDPruner
    from visipruner.pruners.composed import Composed
    from visipruner.pruners.dart import Dart
    from visipruner.pruners.divprune import DivPrune
    from visipruner.pruners.downsample import Downsample
    from visipruner.pruners.fastervlm import FasterVLM
    from visipruner.pruners.fastv import FastV
    from visipruner.pruners.feather import Feather
    from visipruner.pruners.fitprune import FitPrune
    from visipruner.pruners.hiprune import HiPrune
    from visipruner.pruners.none import NoPruning
    from visipruner.pruners.pool import Pool
    from visipruner.pruners.pyramiddrop import PyramidDrop
    from visipruner.pruners.random import RandomPruner
    from visipruner.pruners.registry import load_pruner
    from visipruner.pruners.schedule import FixedSchedule
    from visipruner.pruners.sparsevlm import SparseVLM
    from visipruner.pruners.uniform import UniformPruner
    from visipruner.pruners.visionzip import VisionZip
    from visipruner.pruners.visipruner import VisiPruner
    from visipruner.pruners.vispruner import VisPruner
    from visipruner.pruners.vtw import VTW

_PUBLIC = {
    "Adapter": "adapters",
    "CDPruner": "pruners.cdpruner",
    "Capa": "pruners.capa",
    "Composed": "pruners.composed",
    "ConfigError": "errors",
    "Dart": "pruners.dart",
    "DivPrune": "pruners.divprune",
    "Downsample": "pruners.downsample",
    "ExampleTrace": "accounting.record",
    "FastV": "pruners.fastv",
    "FasterVLM": "pruners.fastervlm",
    "Feather": "pruners.feather",
    "FitPrune": "pruners.fitprune",
    "FixedSchedule": "pruners.schedule",
    "HiPrune": "pruners.hiprune",
    "LayoutError": "errors",
    "NoPruning": "pruners.none",
    "Pool": "pruners.pool",
    "PromptRun": "contract.pruner",
    "PruneHandle": "engine.attach",
    "PruneTrace": "engine.trace",
    "Pruner": "contract.pruner",
    "PyramidDrop": "pruners.pyramiddrop",
    "RandomPruner": "pruners.random",
    "SparseVLM": "pruners.sparsevlm",
    "UniformPruner": "pruners.uniform",
    "UnsupportedModelError": "errors",
    "VTW": "pruners.vtw",
    "VisPruner": "pruners.vispruner",
    "VisiPruner": "pruners.visipruner",
    "VisiPrunerError": "errors",
    "VisionZip": "pruners.visionzip",
    "attach": "engine.attach",
    "evaluate": "evaluation.runner",
    "load_pruner": "pruners.registry",
}
_ROOMS = ("accounting", "adapters", "analysis", "evaluation", "training")

__all__ = [
    "VTW",
    "Adapter",
    "CDPruner",
    "Capa",
    "Composed",
    "ConfigError",
    "Dart",
    "DivPrune",
    "Downsample",
    "ExampleTrace",
    "FastV",
    "FasterVLM",
    "Feather",
    "FitPrune",
    "FixedSchedule",
    "HiPrune",
    "LayoutError",
    "NoPruning",
    "Pool",
    "PromptRun",
    "PruneHandle",
    "PruneTrace",
    "Pruner",
    "PyramidDrop",
    "RandomPruner",
    "SparseVLM",
    "UniformPruner",
    "UnsupportedModelError",
    "VisPruner",
    "VisiPruner",
    "VisiPrunerError",
    "VisionZip",
    "attach",
    "evaluate",
    "load_pruner",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version("visipruner")
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"visipruner.{_PUBLIC[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"visipruner.{name}")
    if name == "testbed":
        return _testbed()
    raise AttributeError(f"module 'visipruner' has no attribute {name!r}")


def _testbed() -> Any:
    """What `visipruner.testbed` was before it became a package of its own."""
    import warnings

    try:
        module = importlib.import_module("visipruner_testbed")
    except ModuleNotFoundError as error:
        if error.name != "visipruner_testbed":
            raise
        raise ImportError(
            "visipruner.testbed is a package of its own; install it with: pip install visipruner-testbed"
        ) from None
    warnings.warn("visipruner.testbed is now the package visipruner_testbed; import that.", DeprecationWarning, 3)
    return module


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
