"""The server as its users know it: chats with pictures, several clients, streams, clients that go away."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.vllm.answers import Reference
from tests.vllm.models import VISUAL
from tests.vllm.server import Server, body, serving
from visipruner.pruners.registry import make_from_spec

SPEC = "fastv:keep_tokens=16,layer=3"
CHATS: list[tuple[str, list[int]]] = [
    ("What is it?", [1]),
    ("What colour is a rose, as the sky is blue?", []),
    ("Which of the two is brighter, and which is larger?", [3, 4]),
    ("How many?", [2]),
]


def seen_by_the_model(text: str, seeds: list[int]) -> tuple[str, list[int]]:
    """What the chat template makes of a chat."""
    return f"user:{'<image>' * len(seeds)}{text};answer:", seeds


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    answers = Reference(folder).answers(make_from_spec(SPEC), [seen_by_the_model(*chat) for chat in CHATS])
    return [answer.tokens for answer in answers]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="module")
def server(folder: Path, log: Path) -> Iterator[Server]:
    with serving(folder, SPEC, log, "--limit-mm-per-prompt", '{"image": 2}') as running:
        yield running


def until(condition: object, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.2)
    return False


def test_clients_at_once_get_the_right_answers(server: Server, expected: list[list[int]]) -> None:
    """Twelve requests from six clients, and the counters of what was done for them."""
    jobs = [place % len(CHATS) for place in range(12)]
    before = server.metric("visipruner_visual_tokens_dropped_total")
    with ThreadPoolExecutor(6) as clients:
        found = list(clients.map(lambda place: server.chat(*CHATS[place])["token_ids"], jobs))
    assert found == [expected[place] for place in jobs]
    dropped = 3 * (VISUAL - 16 + 2 * VISUAL - 16 + VISUAL - 16)
    assert until(lambda: server.metric("visipruner_visual_tokens_dropped_total") - before == dropped)
    assert server.metric("visipruner_prompts_pruned_total") >= 9
    assert server.metric("visipruner_prompts_dense_total") == 0


def test_a_stream_brings_the_same_tokens(server: Server, expected: list[list[int]]) -> None:
    tokens: list[int] = []
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body(*CHATS[0], stream=True)) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    tokens += choice.get("token_ids") or []
    assert tokens == expected[0]


def test_several_turns(server: Server, folder: Path) -> None:
    """The picture of the first turn comes again with the second, as clients do it."""
    first = body("What is it?", [1])["messages"]
    said = [{"role": "assistant", "content": "a cat"}, {"role": "user", "content": "Is it large?"}]
    request = {**body("", []), "messages": [*first, *said]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=request, timeout=120).json()["choices"][0]
    prompt = "user:<image>What is it?;assistant:a cat;user:Is it large?;answer:"
    (right,) = Reference(folder).answers(make_from_spec(SPEC), [(prompt, [1])])
    assert answer["token_ids"] == right.tokens


def test_a_client_that_dies_leaves_nothing_behind(server: Server, expected: list[list[int]], log: Path) -> None:
    """It is killed in the middle of a stream; vLLM gives up its request, and nothing of it is remembered."""
    request = json.dumps(body(*CHATS[0], stream=True, max_tokens=380, min_tokens=380))
    code = (
        "import sys, httpx\n"
        f"with httpx.stream('POST', '{server.url}/v1/chat/completions', content=sys.argv[1], "
        "headers={'content-type': 'application/json'}, timeout=60) as answer:\n"
        "    for line in answer.iter_lines(): print(line, flush=True)\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code, request], stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    assert "data:" in client.stdout.readline()
    client.kill()
    client.wait()
    assert until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.chat(*CHATS[3])["token_ids"] == expected[3]
    assert server.chat(*CHATS[1])["token_ids"] == expected[1]
    assert until(lambda: server.metric("visipruner_requests_remembered") <= 1)
    assert until(lambda: "visual tokens dropped" in log.read_text())


FAILING = """
from dataclasses import dataclass
from typing import ClassVar
from visipruner.contract.pruner import About, Pruner

@dataclass(frozen=True, kw_only=True)
class Failing(Pruner):
    name: ClassVar[str] = "failing"
    about: ClassVar[About] = About("raises an error on two images")

    def observes(self, layer):
        return layer == 2

    def select(self, layer, view):
        if len(view.layout.tokens_per_image) == 2:
            raise RuntimeError("no idea what to do")
"""


def test_a_failing_method_ends_its_request_alone(folder: Path, tmp_path: Path) -> None:
    """A method from another package, in the worker's process; the client gets an error, the log its cause."""
    (tmp_path / "failing.py").write_text(FAILING)
    about = tmp_path / "failing-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[visipruner.pruners]\nfailing = failing:Failing\n")
    log, limit = tmp_path / "log", ("--limit-mm-per-prompt", '{"image": 2}')
    dense = Reference(folder).answers(make_from_spec("none"), [seen_by_the_model(*chat) for chat in CHATS])
    with serving(folder, "failing", log, *limit, packages=str(tmp_path)) as server:
        asked = [body(*chat) for chat in CHATS]
        with ThreadPoolExecutor(4) as clients:
            found = list(
                clients.map(lambda each: httpx.post(f"{server.url}/v1/chat/completions", json=each, timeout=120), asked)
            )
        assert [answer.status_code for answer in found] == [200, 200, 500, 200]
        for place in (0, 1, 3):
            assert found[place].json()["choices"][0]["token_ids"] == dense[place].tokens
        assert until(lambda: server.metric("visipruner_prompts_failed_total") == 1)
        assert server.chat(*CHATS[0])["token_ids"] == dense[0].tokens
    assert "no idea what to do" in log.read_text()


def test_a_server_that_cannot_be_started_says_why(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"leave that part out \(for visipruner: stages"):  # noqa: SIM117
        with serving(folder, "visipruner", tmp_path / "log"):
            pass
