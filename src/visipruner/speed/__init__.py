"""Benchmarks: what pruning saves in seconds and bytes, beside what its FLOPs promise. `visipruner bench`."""
