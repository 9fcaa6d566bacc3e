"""What pruning saves in seconds and bytes, beside what its FLOPs promise: `bench_shape` and its kin."""

from visipruner.speed.bench import bench_checks, bench_model, bench_shape
from visipruner.speed.checks import Effort

__all__ = ["Effort", "bench_checks", "bench_model", "bench_shape"]
