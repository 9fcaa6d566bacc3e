"""A real server: `vllm serve` in a process of its own, reachable from this machine alone."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.vllm.models import picture

START = 240  # seconds that a start may take on two busy cores


@dataclass(frozen=True)
class Server:
    """Where it listens."""

    url: str

    def chat(self, text: str, seeds: list[int], **options: Any) -> dict[str, Any]:
        """One OpenAI chat completion; pictures come before the text."""
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body(text, seeds, **options), timeout=120)
        answer.raise_for_status()
        return answer.json()["choices"][0]  # type: ignore[no-any-return]

    def metric(self, name: str) -> float:
        """The sum over a metric's labels; 0 where it is not there yet."""
        lines = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", httpx.get(f"{self.url}/metrics").text, re.MULTILINE)
        return sum(map(float, lines))


def body(text: str, seeds: list[int], **options: Any) -> dict[str, Any]:
    """A request whose answer is greedy and 8 tokens long, unless told otherwise."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": data_url(seed)}} for seed in seeds]
    content = [*parts, {"type": "text", "text": text}]
    given = {"model": "tiny", "messages": [{"role": "user", "content": content}], "temperature": 0}
    return {**given, "max_tokens": 8, "min_tokens": 8, "return_token_ids": True, **options}


def data_url(seed: int) -> str:
    file = io.BytesIO()
    picture(seed).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, asked: Any, log: Path, *options: str, packages: str = "") -> Iterator[Server]:
    """Starts a server of the model in `folder`, and stops it. `packages`: a folder with more of them. Raises
    RuntimeError with its log where it ends early."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(folder), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "512"]
    command += ["--max-num-seqs", "8", "--enforce-eager", "--additional-config", json.dumps({"visipruner": asked})]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    environment |= {"VLLM_LOG_STATS_INTERVAL": "1", "PYTHONPATH": packages}
    with log.open("w") as file:
        process = subprocess.Popen([*command, *options], stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        server = Server(f"http://127.0.0.1:{port}")
        _wait(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        try:
            if httpx.get(f"{server.url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"The server did not start within {START} seconds:\n{log.read_text()}")
