"""Engines of the tiny models, started once each, whose method a test chooses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.vllm.answers import Reference
from tests.vllm.models import save_llava
from tests.vllm.qwen import save_qwen
from visipruner.integrations.vllm import plugin

if TYPE_CHECKING:
    from vllm import LLM

    from visipruner.contract.pruner import Pruner
    from visipruner.integrations.vllm.worker import Worker

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "max_num_seqs": 8,
    "block_size": 32,
    "num_gpu_blocks_override": 64,
    "limit_mm_per_prompt": {"image": 2},
    "disable_log_stats": False,
}


class Served:
    """A model in vLLM and in transformers."""

    def __init__(self, folder: Path, **options: Any) -> None:
        from vllm import LLM

        self.folder = folder
        asked = {"method": "none", "cache_groups": options.pop("cache_groups", [])}
        self.llm: LLM = LLM(str(folder), additional_config={"visipruner": asked}, **{**OPTIONS, **options})
        runner: Any = self.llm.llm_engine.model_executor.driver_worker.worker.model_runner  # type: ignore[attr-defined]
        self.worker: Worker = runner.visipruner
        self.scheduler: Any = self.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
        self._before = Counter(plugin.totals)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.folder)

    def choose(self, pruner: Pruner) -> None:
        """From now on `pruner` is at work."""
        self.worker.served = replace(self.worker.served, pruner=pruner)
        self.numbers()

    def numbers(self) -> Counter[str]:
        """What was counted since this was asked last."""
        before, self._before = self._before, Counter(plugin.totals)
        return self._before - before


class Engines:
    """Every engine that was asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._served: dict[tuple[str, str], Served] = {}

    def folder(self, decoder: str) -> Path:
        found = self._root / decoder
        if found.exists():
            return found
        return save_qwen(found, decoder) if decoder.endswith("vl") else save_llava(found, decoder)

    def of(self, decoder: str, **options: Any) -> Served:
        key = (decoder, repr(sorted(options.items())))
        if key not in self._served:
            self._served[key] = Served(self.folder(decoder), **options)
        return self._served[key]
