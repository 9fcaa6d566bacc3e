"""Decoding with a static cache and a compiled step beside a dynamic cache, uncompiled: would it be faster on a CPU?

    python benchmarks/static_cache.py [--layers 6] [--visual 576 2304] [--tokens 24] [--rounds 3] [--json FILE]

The plain dense model answers through `generate`, in turns with a dynamic cache, a static one, and a static one whose
step torch compiles; and pruned, with the dynamic cache, which then holds fewer keys. Times are milliseconds of one
thread's processor time from one token to the next, so that other work on the machine counts little; medians of each
round, and ratios are taken within a round. The model has LLaVA-OneVision-0.5B's layers with random weights and a small
vocabulary, so that layers are what counts. Compiling takes a while, and a C++ compiler.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from transformers import CompileConfig, Qwen2Config, Qwen2ForCausalLM

import visipruner as vp

BEFORE, AFTER = 35, 13  # rows of text around the image
SKIPPED = 4  # intervals at the start of an answer, which allocate


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.process_time())

    def end(self) -> None:
        pass


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
    return {
        "dynamic": {},
        "dynamic, pruned": {},
        "static": {"cache_implementation": "static", "disable_compile": True},
        "static, compiled": {"cache_implementation": "static", "compile_config": compiled},
    }


def step(model: Any, way: str, how: dict[str, Any], visual: int, tokens: int) -> tuple[float, list[int]]:
    """Median seconds from token to token, and the tokens."""
    generator = torch.Generator().manual_seed(0)
    rows = BEFORE + visual + AFTER
    embeds = (torch.randn(1, rows, model.config.hidden_size, generator=generator) * 0.02).to(model.dtype)
    mask = torch.zeros(1, rows, dtype=torch.bool)
    mask[:, BEFORE : BEFORE + visual] = True
    depth = model.config.num_hidden_layers
    pruner = vp.FixedSchedule(layers=(depth // 3, 2 * depth // 3), keep=(10, 0))
    clock = Clock()
    with vp.attach(model, pruner, mask) if "pruned" in way else nullcontext():
        said = model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(1, rows, dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
            **how,
        )
    spent = [later - earlier for earlier, later in itertools.pairwise(clock.times)]
    return statistics.median(spent[SKIPPED:]), said[0].tolist()


def measure(model: Any, visual: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Per way the milliseconds of each round, and whether it said what the dense dynamic run said."""
    contenders = ways()
    found: dict[str, Any] = {way: {"milliseconds": []} for way in contenders}
    for number in range(1 + rounds):
        for way, how in contenders.items():
            seconds, said = step(model, way, how, visual, tokens)
            found[way]["tokens"] = said
            if number:  # the first warms up and compiles
                found[way]["milliseconds"].append(1000 * seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--visual", type=int, nargs="+", default=[576, 2304])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
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
            same = "" if row["tokens"] == dense["tokens"] else "  other tokens"
            low, middle, high = row["faster"][0], statistics.median(row["faster"]), row["faster"][-1]
            spent = statistics.median(row["milliseconds"])
            print(f"  {way:18}{spent:8.2f} ms a token  {middle:5.2f}x as fast ({low:.2f}-{high:.2f}){same}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"layers": arguments.layers, "points": points}, file, indent=2)


if __name__ == "__main__":
    main()
