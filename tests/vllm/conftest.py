"""One engine per decoder, in the tests' own process. Collected only where vLLM is installed (`make vllm-test`)."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.vllm.engines import Engines

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["*.py"]

# An engine beside the tests in one process, for tests look into it; nothing is asked of the network.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_LOGGING_LEVEL="WARNING",
)


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    from tests.vllm.engines import Engines

    return Engines(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def folder(engines: Any) -> Path:
    """Where a LLaVA with a Llama decoder lies."""
    found: Path = engines.folder("llama")
    return found
