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
    from visipruner.accounting.record import ExampleTrace as ExampleTrace
    from visipruner.adapters import Adapter as Adapter
    from visipruner.analysis.run import analyze as analyze
    from visipruner.asking.run import ask as ask
    from visipruner.checking import check as check
    from visipruner.contract.pruner import PromptRun as PromptRun
    from visipruner.contract.pruner import Pruner as Pruner
    from visipruner.engine.attach import PruneHandle as PruneHandle
    from visipruner.engine.attach import attach as attach
    from visipruner.engine.trace import PruneTrace as PruneTrace
    from visipruner.errors import ConfigError as ConfigError
    from visipruner.errors import LayoutError as LayoutError
    from visipruner.errors import UnsupportedModelError as UnsupportedModelError
    from visipruner.errors import VisiPrunerError as VisiPrunerError
    from visipruner.evaluation.comparison import compare as compare
    from visipruner.evaluation.runner import evaluate as evaluate
    from visipruner.pruners.capa import Capa as Capa
    from visipruner.pruners.cdpruner import CDPruner as CDPruner
    from visipruner.pruners.composed import Composed as Composed
    from visipruner.pruners.dart import Dart as Dart
    from visipruner.pruners.divprune import DivPrune as DivPrune
    from visipruner.pruners.downsample import Downsample as Downsample
    from visipruner.pruners.fastervlm import FasterVLM as FasterVLM
    from visipruner.pruners.fastv import FastV as FastV
    from visipruner.pruners.feather import Feather as Feather
    from visipruner.pruners.fitprune import FitPrune as FitPrune
    from visipruner.pruners.hiprune import HiPrune as HiPrune
    from visipruner.pruners.none import NoPruning as NoPruning
    from visipruner.pruners.pool import Pool as Pool
    from visipruner.pruners.pyramiddrop import PyramidDrop as PyramidDrop
    from visipruner.pruners.random import RandomPruner as RandomPruner
    from visipruner.pruners.registry import load_pruner as load_pruner
    from visipruner.pruners.schedule import FixedSchedule as FixedSchedule
    from visipruner.pruners.sparsevlm import SparseVLM as SparseVLM
    from visipruner.pruners.uniform import UniformPruner as UniformPruner
    from visipruner.pruners.visionzip import VisionZip as VisionZip
    from visipruner.pruners.visipruner import VisiPruner as VisiPruner
    from visipruner.pruners.vispruner import VisPruner as VisPruner
    from visipruner.pruners.vtw import VTW as VTW

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
    "analyze": "analysis.run",
    "ask": "asking.run",
    "attach": "engine.attach",
    "check": "checking",
    "compare": "evaluation.comparison",
    "evaluate": "evaluation.runner",
    "load_pruner": "pruners.registry",
}
_ROOMS = ("accounting", "adapters", "analysis", "checking", "evaluation", "hub", "models", "speed", "training")

__all__ = list(_PUBLIC)


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
