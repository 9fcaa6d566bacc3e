"""The check of a GPU, in small on a CPU: everything but CUDA's own clock, waits and idle time, which never ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from visipruner.errors import ConfigError
from visipruner.speed import gpu
from visipruner.speed.bench import bench_checks
from visipruner.speed.checks import Effort, on_device
from visipruner.speed.measure import DENSE

CPU = torch.device("cpu")


def silent(_: str) -> None:
    return


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match="needs a CUDA build of torch and a GPU"):
        bench_checks(["gpu"])


@pytest.mark.parametrize("kernel", ["sdpa", "eager", "flex_attention"])
def test_what_holds_of_a_kernel(kernel: str) -> None:
    with torch.compiler.set_stance("force_eager"):
        found = gpu.invariants(kernel, CPU)
    assert (found.wrong, found.left_out) == ([], "")
    assert found.tried > 5


def test_a_kernel_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine runs a kernel that sees one key too many."""
    from visipruner.engine import edges

    whole: Callable[..., Any] = edges.run_kernel

    def wrong(kernel: Any, module: Any, qkv: Any, mask: Any, is_causal: bool, *args: Any) -> Any:
        return whole(kernel, module, qkv, mask, False, *args)

    monkeypatch.setattr(edges, "run_kernel", wrong)
    found = gpu.invariants("sdpa", CPU)
    assert any(what.startswith("drop = cut") for what in found.wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash attention may be there")
def test_a_kernel_that_is_not_installed_is_left_out() -> None:
    assert "flash" in gpu.invariants("flash_attention_2", CPU).left_out.lower()


def test_a_tiny_shape_on_a_cpu() -> None:
    effort = Effort(shape="tiny", visual=(40,), rounds=1, dtype="float32")
    found = on_device(effort, silent, kernels=["sdpa"])
    assert [(point["attention"], point["batch"]) for point in found.points] == [("sdpa", 1), ("sdpa", 8)]
    for point in found.points:
        dense, *pruned = point["rows"]
        assert dense["name"] == DENSE
        assert len(dense["visual_tokens"]) == point["batch"]
        for row in pruned:
            assert row["flops_ratio"] > 1
            assert row["of_limit"] == pytest.approx(row["speedup"]["median"] / row["flops_ratio"])
            assert row["kv_bytes"] < dense["kv_bytes"]
            assert row["waits"] is row["idle_share"] is None
    named = [target.what for target in found.targets]
    assert named[0] == "sdpa: checks that fail"
    assert sum("FLOP ratio" in name for name in named) == 2 * 5
    assert found.targets[0].met
    assert found.targets[-1].bound == 8
