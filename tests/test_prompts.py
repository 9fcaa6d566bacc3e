"""Times of an answer, on a device whose work is done later than it is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from visipruner import chat as prompts
from visipruner.engine import clock

_PREFILL, _DECODE, _LEFT_OVER = 5.0, 2.0, 1.0


class _LateDevice:
    """A clock that only waiting moves, as launching takes no time; `waiting` are the seconds of what was launched."""

    def __init__(self) -> None:
        self.now, self.waiting = 0.0, _LEFT_OVER
        self.generation_config = SimpleNamespace(eos_token_id=None)

    def synchronize(self, device: torch.device) -> None:
        self.now, self.waiting = self.now + self.waiting, 0.0

    def generate(self, input_ids: Any, stopping_criteria: Any, **options: Any) -> Any:
        self.waiting += _PREFILL
        for _ in range(2):
            stopping_criteria[0](input_ids, None)
            self.waiting += _DECODE
        return torch.cat([input_ids, torch.ones_like(input_ids)], 1)


def test_seconds_are_those_of_the_work_and_not_of_its_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    device = _LateDevice()
    monkeypatch.setattr(prompts, "synchronize", device.synchronize)
    monkeypatch.setattr(prompts, "time", SimpleNamespace(perf_counter=lambda: device.now))
    words = SimpleNamespace(decode=lambda tokens, **_: f"{len(tokens)} words")
    reply = prompts.greedy_reply(device, words, {"input_ids": torch.ones(1, 3, dtype=torch.long)}, 2)
    assert reply.first_token_seconds == _PREFILL  # neither what was still to be done before, nor a part of what follows
    assert reply.seconds == _PREFILL + 2 * _DECODE
    assert reply.text == "3 words"


def test_only_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    for name in ("cpu", "cuda:1", "mps"):
        clock.synchronize(torch.device(name))
    assert waited == [torch.device("cuda:1"), torch.device("mps")]
