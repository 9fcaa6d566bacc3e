"""Decoding with a static cache and a compiled step beside a dynamic cache, uncompiled, dense and pruned.

    python benchmarks/static_cache.py [--layers 6] [--visual 576 2304] [--tokens 32] [--rounds 4] [--json FILE]

A model answers through `generate`, in turns with a dynamic cache, a static one, and a static one whose step torch
compiles; each plain and with a pruner attached. They take turns token by token. Times are milliseconds of one thread's
processor time from one token to the next, so that other work on the machine counts little; medians, and of the ratios,
which are taken token by token, the quartiles.
The model has LLaVA-OneVision-0.5B's layers with random weights and a small vocabulary, so that layers are what counts.
Compiling takes a while, and a C++ compiler; it is not part of the times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore
from typing import Any

import torch
from transformers import CompileConfig, Qwen2Config, Qwen2ForCausalLM

import visipruner as vp

BEFORE, AFTER = 35, 13  # rows of text around the image
PRUNED = ", pruned"
PATIENCE = 600  # seconds to wait for a turn
SKIPPED = 4  # intervals at the start of an answer, which allocate


class Turns:
    """A streamer that notes its thread's time when a token came, and lets the next contender go on to a token."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.may_go = Semaphore(0)
        self.after: Turns = self

    def put(self, value: Any) -> None:
        self.times.append(time.thread_time())
        self.after.may_go.release()
        self.wait()

    def wait(self) -> None:
        if not self.may_go.acquire(timeout=PATIENCE):
            raise TimeoutError("another contender failed")

    def end(self) -> None:
        self.after.may_go.release()


def build(layers: int, dtype: torch.dtype) -> Any:
    """LLaVA-OneVision-0.5B's decoder layers with random weights."""
    config = Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=1024,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).to(dtype).eval()


def ways() -> dict[str, dict[str, Any]]:
    """How each contender calls `generate`."""
    compiled = CompileConfig(mode="default", dynamic=False)
    compiled._compile_all_devices = True  # transformers compiles on accelerators alone
    kinds: dict[str, dict[str, Any]] = {
        "dynamic": {},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "static, compiled": {"cache_implementation": "static", "compile_config": compiled},
    }
    return {kind + what: how for what in ("", PRUNED) for kind, how in kinds.items()}


def shared(model: Any) -> Any:
    """Another model with the same weights."""
    other = build(model.config.num_hidden_layers, model.dtype)
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    return other


def attached(model: Any, visual: int) -> vp.PruneHandle:
    """10 visual tokens are left from a third of the depth on, none from two thirds on."""
    mask = torch.zeros(1, BEFORE + visual + AFTER, dtype=torch.bool)
    mask[:, BEFORE : BEFORE + visual] = True
    depth = model.config.num_hidden_layers
    return vp.attach(model, vp.FixedSchedule(layers=(depth // 3, 2 * depth // 3), keep=(10, 0)), mask)


def answer(model: Any, how: dict[str, Any], visual: int, tokens: int, turns: Turns) -> list[int]:
    """The tokens of an answer; between them others have their turns."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = BEFORE + visual + AFTER
    embeds = (torch.randn(1, rows, model.config.hidden_size, generator=generator) * 0.02).to(model.dtype)
    turns.wait()
    said = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(1, rows, dtype=torch.long),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=turns,
        **how,
    )
    return said[0].tolist()  # type: ignore[no-any-return]


def run(
    contenders: dict[str, dict[str, Any]], model: Any, pruned: Any, visual: int, tokens: int
) -> dict[str, tuple[list[float], list[int]]]:
    """Per way the seconds from token to token, and the tokens."""
    turns = {way: Turns() for way in contenders}
    for mine, other in itertools.pairwise([*turns.values(), *turns.values()][: len(turns) + 1]):
        mine.after = other
    with ThreadPoolExecutor(len(contenders)) as pool:
        said = {
            way: pool.submit(answer, pruned if PRUNED in way else model, how, visual, tokens, turns[way])
            for way, how in contenders.items()
        }
        next(iter(turns.values())).may_go.release()
    spent = {way: [later - earlier for earlier, later in itertools.pairwise(mine.times)] for way, mine in turns.items()}
    return {way: (spent[way][SKIPPED:], said[way].result()) for way in contenders}


def measure(model: Any, visual: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Per way the milliseconds of each token, and the tokens."""
    contenders, pruned = ways(), shared(model)
    found: dict[str, Any] = {way: {"milliseconds": []} for way in contenders}
    with attached(pruned, visual):
        for number in range(1 + rounds):
            for way, (seconds, said) in run(contenders, model, pruned, visual, tokens).items():
                found[way]["tokens"] = said
                if number:  # the first warms up and compiles
                    found[way]["milliseconds"] += [1000 * second for second in seconds]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--visual", type=int, nargs="+", default=[576, 2304])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build(arguments.layers, getattr(torch, arguments.dtype))
    points = {}
    for visual in arguments.visual:
        points[visual] = found = measure(model, visual, arguments.tokens, arguments.rounds)
        print(f"{visual} visual tokens, {arguments.layers} layers")
        dense = found["dynamic"]
        for way, row in found.items():
            pairs = zip(dense["milliseconds"], row["milliseconds"], strict=True)
            row["faster"] = sorted(base / mine for base, mine in pairs)
            expected = found["dynamic" + PRUNED if PRUNED in way else "dynamic"]
            same = "" if row["tokens"] == expected["tokens"] else "  other tokens"
            low, middle, high = statistics.quantiles(row["faster"], n=4)
            spent = statistics.median(row["milliseconds"])
            print(f"  {way:26}{spent:8.2f} ms a token  {middle:5.2f}x as fast ({low:.2f}-{high:.2f}){same}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"layers": arguments.layers, "points": points}, file, indent=2)


if __name__ == "__main__":
    main()
