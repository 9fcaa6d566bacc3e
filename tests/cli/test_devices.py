"""`--device`: this machine's own devices, and a sentence for others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tests.cli.tiny_llava import PRUNE_EARLY
from visipruner.errors import LoadError
from visipruner.models import devices


@pytest.mark.parametrize("name", ["cuda:7", "gpu", "meta", "npu"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(LoadError, match=rf"{name}.*cpu"):
        devices.resolve(name)


def test_the_command_says_so(fails, llava_folder, photo) -> None:
    said = fails("run", photo, "-q", "what is this ?", "--model", llava_folder, "--device", "cuda:7")
    assert "'cuda:7' is not a device of this machine" in said


@pytest.fixture
def two_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cuda"))


def test_every_process_has_its_own_accelerator(two_accelerators: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.resolve("") == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.resolve("") == "cuda:1"
    assert devices.placed("cuda:1") == {"device_map": {"": "cuda:1"}}
    assert devices.placed(devices.SPREAD) == {"device_map": "auto"}
    assert devices.placed("cpu") == {}


def test_a_model_spread_by_accelerate_answers_the_same(cli, llava_folder, photo) -> None:
    common = ["run", photo, "-q", "what is this ?", "--model", llava_folder, "--json", *PRUNE_EARLY]
    results = [cli(*common, "--device", name) for name in ("cpu", devices.SPREAD)]
    assert [result.exit_code for result in results] == [0, 0], results
    first, second = (json.loads(result.stdout)["answers"][0] for result in results)
    assert first["answer"] == second["answer"]
