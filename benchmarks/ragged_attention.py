"""Attention of eight unlike prompts in packed rows: which call of torch is the fastest, and which torch has at all.

    python benchmarks/ragged_attention.py [--shape SHAPE] [--device cuda] [--dtype bfloat16] [--rounds 5] [--json FILE]

All get the same packed queries, keys and values and answer as packed, so gathers count. "padded" and "one by one" are
what the engine chooses between (`engine/padded.py`). The others are one call with a mask of blocks, and torch's own for
unlike lengths: nested tensors and `torch.nn.attention.varlen`. Nested tensors have no causal attention on a CPU, so
they are also timed with all edges open, beside "one by one" with all edges open. Contenders take turns. On a CPU
times are one thread's processor time, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Heads of queries, heads of keys and values, their width.
SHAPES = {"llava-onevision-0.5b": (14, 2, 64), "llava-1.5-7b": (32, 32, 128)}
LENGTHS = {
    "an image each, unlike text": [606 + 9 * number for number in range(8)],
    "unlike images": [256 + 49 * number for number in range(8)],
    "a quarter left of unlike images": [64 + 12 * number for number in range(8)],
    "ten tokens left, unlike text": [40 + 9 * number for number in range(8)],
    "a long prompt among short ones": [60] * 7 + [600],
}


class Ragged:
    """One layer's attention of prompts of these lengths: random queries, keys and values, laid out as a layer's
    projections leave them. Every way answers `[total, heads, head_dim]`."""

    def __init__(self, shape: str, lengths: list[int], device: str, dtype: torch.dtype) -> None:
        heads, kv_heads, width = SHAPES[shape]
        total, self.lengths, self.groups = sum(lengths), lengths, heads // kv_heads
        made = (torch.randn(1, total, n, width, device=device, dtype=dtype) for n in (heads, kv_heads, kv_heads))
        self.qkv = [part.transpose(1, 2) for part in made]
        self.module: Any = SimpleNamespace(num_key_value_groups=self.groups, is_causal=True, training=False)
        sizes = torch.tensor(lengths, device=device)
        self.ends = functional.pad(sizes.cumsum(0), (1, 0))
        example = torch.arange(len(lengths), device=device).repeat_interleave(sizes)
        self.blocks = (example[:, None] == example[None]).tril()[None, None]
        place = torch.arange(max(lengths), device=device)
        self.wide = (self.ends[:-1, None] + torch.minimum(place, sizes[:, None] - 1)).flatten()  # the last row repeated
        self.real = (place < sizes[:, None]).flatten().nonzero()[:, 0]

    def padded(self) -> Tensor:
        batch = len(self.lengths)
        wide = [
            part.index_select(2, self.wide).view(part.shape[1], batch, -1, part.shape[3]).transpose(0, 1)
            for part in self.qkv
        ]
        return self._attend(*wide, is_causal=True).flatten(0, 1).index_select(0, self.real)

    def one_by_one(self, is_causal: bool = True) -> Tensor:
        parts = zip(*(part.split(self.lengths, dim=2) for part in self.qkv), strict=True)
        return torch.cat([self._attend(*part, is_causal=is_causal)[0] for part in parts])

    def masked(self) -> Tensor:
        return self._attend(*self.qkv, mask=self.blocks)[0]

    def nested(self, is_causal: bool = True) -> Tensor:
        q, k, v = self.qkv
        k, v = (part.repeat_interleave(self.groups, dim=1) for part in (k, v))
        jagged = (
            torch.nested.nested_tensor_from_jagged(part[0].transpose(0, 1).contiguous(), self.ends).transpose(1, 2)
            for part in (q, k, v)
        )
        attended = functional.scaled_dot_product_attention(*jagged, is_causal=is_causal)
        return attended.transpose(1, 2).contiguous().values()

    def varlen(self) -> Tensor:
        q, k, v = (part[0].transpose(0, 1) for part in self.qkv)
        ends, longest = self.ends.int(), max(self.lengths)
        answered = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0), enable_gqa=self.groups > 1)
        assert isinstance(answered, Tensor)
        return answered

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **said: Any) -> Tensor:
        return sdpa_attention_forward(self.module, q, k, v, mask, **said)[0]

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {
            "one by one": self.one_by_one,
            "padded": self.padded,
            "one call, a mask of blocks": self.masked,
            "nested": self.nested,
            "varlen_attn": self.varlen,
            "one by one, all edges": lambda: self.one_by_one(False),
            "nested, all edges": lambda: self.nested(False),
        }


@torch.no_grad()
def measure(ragged: Ragged, rounds: int) -> dict[str, float | str]:
    """Median milliseconds of each way over rounds in turns, or why torch has it not. Raises AssertionError where two
    ways disagree."""
    ways, found, spent = ragged.ways(), {}, {}
    for name, way in ways.items():
        try:
            answer = way()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            found[name] = str(error).strip().splitlines()[0][:90]
            continue
        truth = ragged.one_by_one("all edges" not in name)
        torch.testing.assert_close(answer, truth, atol=2e-2, rtol=2e-2)
        spent[name] = []
    clock = time.perf_counter if ragged.ends.is_cuda else time.process_time
    for _ in range(rounds):
        for name, seconds in spent.items():
            began = clock()
            ways[name]()
            if ragged.ends.is_cuda:
                torch.cuda.synchronize()
            seconds.append(clock() - began)
    return found | {name: 1000 * statistics.median(seconds) for name, seconds in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llava-onevision-0.5b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the result here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("torch.nested._internal.sdpa").setLevel(logging.ERROR)  # why each kernel is none, line by line
    found = []
    for name, lengths in LENGTHS.items():
        ragged = Ragged(arguments.shape, lengths, arguments.device, getattr(torch, arguments.dtype))
        waste = len(lengths) * max(lengths) ** 2 / sum(length**2 for length in lengths)
        print(f"{name}: {lengths[0]} to {lengths[-1]} rows; padded, {waste:.2f} times the pairs", flush=True)
        row = measure(ragged, arguments.rounds)
        base = row["one by one"]
        for way, value in row.items():
            print(f"  {way:28}", value if isinstance(value, str) else f"{value:9.2f} ms  {value / base:6.2f}x")
        found.append({"lengths": lengths, "pairs_padded": waste, "milliseconds": row})
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"shape": arguments.shape, "points": found}, file, indent=2)


if __name__ == "__main__":
    main()
