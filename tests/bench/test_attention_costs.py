"""`ragged_attention.py` and `static_cache.py` of `benchmarks` on a few rows: what they compare is the same work."""

from __future__ import annotations

import torch

from benchmarks.ragged_attention import Ragged, measure
from benchmarks.static_cache import SKIPPED, attached, build, run, shared, ways


def test_ways_of_ragged_attention_agree_and_torch_has_no_other_on_a_cpu() -> None:
    found = measure(Ragged("llava-onevision-0.5b", [5, 9, 3], "cpu", torch.float32), rounds=1)
    missing = {name for name, value in found.items() if isinstance(value, str)}
    assert missing == {"nested", "varlen_attn"}, "docs/performance.md says that torch has neither on a CPU"
    assert {"padded", "one by one", "one call, a mask of blocks"} <= found.keys()


def test_a_static_cache_answers_as_a_dynamic_one() -> None:
    model = build(3, torch.float32)
    pruned, uncompiled = shared(model), {way: how for way, how in ways().items() if "compiled" not in way}
    with attached(pruned, 16):
        found = run(uncompiled, model, pruned, 16, 8)
    said = {way: tokens for way, (_, tokens) in found.items()}
    assert said["static"] == said["dynamic"]
    assert said["static, pruned"] == said["dynamic, pruned"]
    assert all(len(seconds) == 8 - SKIPPED and min(seconds) > 0 for seconds, _ in found.values())
