"""Published benchmarks, read from the folders in which LLaVA-1.5's evaluation keeps them, scored as they publish.

One class a benchmark, found by being here; `registry` recognises a folder by its question file. Files
are only read: nothing is downloaded.

from visipruner.evaluation.datasets import open_benchmark

pope = open_benchmark(Path("playground/data/eval/pope"))
records = list(evaluation.evaluate(model, processor, pope.samples, methods))
rows = evaluation.summarize(records, scoring=pope)
"""

from visipruner.evaluation.datasets.base import Benchmark
from visipruner.evaluation.datasets.registry import is_package, kinds, names, open_benchmark, open_data, recognises

__all__ = ["Benchmark", "is_package", "kinds", "names", "open_benchmark", "open_data", "recognises"]
