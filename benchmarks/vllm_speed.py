"""Time to first token and tokens per second in vLLM, with the plug-in and without it, in turns.

    .venv-vllm/bin/python benchmarks/vllm_speed.py --out out/vllm-speed.json

Two engines of the same random LLaVA live in one process and answer the same prompts by turns, with the same settings,
so that what else the machine does hits both. Each has one thread, and what is measured is the time of the processor:
seconds on a machine with a core to spare. What FLOPs promise counts the decoder alone; pictures are resized and encoded
before it in both engines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.update(OMP_NUM_THREADS="1", VLLM_CPU_OMP_THREADS_BIND="nobind")

from tests.vllm.models import picture, save_llava
from visipruner.pruners.registry import make_from_spec

LAYERS, HIDDEN, GRID = 12, 768, 24
QUESTION = "What is in the picture, and what is the largest thing in it?"
METHODS = {
    "none": "none",
    "fastv, 1/4 from layer 2": "fastv:layer=2,keep_ratio=0.25",
    "visipruner, 64 from 4, none from 8": (
        'visipruner:stages=["middle","deep"],filter_layer=3,exit_layer=8,keep_tokens=64'
    ),
}


@dataclass(frozen=True)
class Load:
    """So many requests at once, with so many pictures each."""

    requests: int
    pictures: int

    def prompts(self, seed: int) -> list[dict[str, Any]]:
        text = f"user:{'<image>' * self.pictures}{QUESTION};answer:"
        return [{"prompt": text, **self._pictures(seed * 1000 + 10 * place)} for place in range(self.requests)]

    def _pictures(self, seed: int) -> dict[str, Any]:
        """New ones each time, as vLLM keeps the features of those it knows."""
        if not self.pictures:
            return {}
        return {"multi_modal_data": {"image": [picture(seed + each, 336, 336) for each in range(self.pictures)]}}


def engine(folder: Path, dtype: str, plugged: bool) -> Any:
    from vllm import LLM

    return LLM(
        str(folder),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=8,
        max_num_batched_tokens=20480,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 4},
        additional_config={"visipruner": "none"} if plugged else {},
    )


def seconds(engines: dict[str, Any], load: Load, seed: int, new: int) -> dict[str, list[float]]:
    """Of the processor, for each engine: until every request has its first token, then every later step. The engines
    take their steps by turns."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=new, min_tokens=new)
    spent: dict[str, list[float]] = {}
    for name, llm in engines.items():
        begin = time.process_time()
        for place, prompt in enumerate(load.prompts(seed)):
            llm.llm_engine.add_request(f"{seed}-{place}", prompt, how)
        llm.llm_engine.step()
        spent[name] = [time.process_time() - begin]
    while any(llm.llm_engine.has_unfinished_requests() for llm in engines.values()):
        for name, llm in engines.items():
            begin = time.process_time()
            llm.llm_engine.step()
            spent[name].append(time.process_time() - begin)
    return spent


def promised(worker: Any, method: str, load: Load) -> float:
    """Dense FLOPs of the decoder's prefill over those of this method, from the rows that its layers ran."""
    visual = load.pictures * GRID * GRID
    text = len(f"user:{QUESTION};answer:")
    kept = _rows_kept(worker, visual)
    dense = sum(_flops(text + visual) for _ in range(LAYERS))
    return dense / sum(_flops(text + rows) for rows in kept)


def _rows_kept(worker: Any, visual: int) -> list[int]:
    (gone,) = {tuple(request.gone.tolist()) for request in worker.requests.values()}
    return [visual - each for each in gone]


def _flops(rows: int) -> float:
    """Of one layer: projections of queries, keys, values and output, attention, and the feed-forward part."""
    linear = 2 * rows * HIDDEN * (HIDDEN + HIDDEN + HIDDEN + 3 * 2 * HIDDEN)
    return linear + 2 * rows * rows * HIDDEN  # causal: half of the pairs, twice


def compare(plain: Any, plugged: Any, load: Load, method: str, rounds: int, new: int) -> dict[str, Any]:
    """Medians of both engines; and of the ratios of first tokens of one round, of steps that followed each other."""
    worker = plugged.llm_engine.model_executor.driver_worker.worker.model_runner.visipruner
    worker.served = replace(worker.served, pruner=make_from_spec(METHODS[method]))
    first: dict[str, list[float]] = {"plain": [], "plugged": []}
    steps: dict[str, list[float]] = {"plain": [], "plugged": []}
    promise, spent = 1.0, watched(worker)
    for turn in range(rounds + 1):
        order = [("plain", plain), ("plugged", plugged)]
        found = seconds(dict(order if turn % 2 else order[::-1]), load, turn, new)
        if load.pictures:
            promise = promised(worker, method, load)
        if turn:  # the first round warms up
            for name, times in found.items():
                first[name].append(times[0])
                steps[name] += times[1:]
    medians = {name: (statistics.median(first[name]), statistics.median(steps[name])) for name in first}
    return {
        "method": method,
        "requests": load.requests,
        "visual_tokens": load.pictures * GRID * GRID,
        **{f"first_token_s_{name}": found[0] for name, found in medians.items()},
        **{f"tokens_per_s_{name}": load.requests / found[1] for name, found in medians.items()},
        "prefill_times": ratio(first),
        "flops_times": promise,
        "decode_times": ratio(steps),
        "looking_us_a_step": 1e6 * statistics.median(spent),
    }


def ratio(times: dict[str, list[float]]) -> float:
    """How many times as fast with the plug-in, the median of what was measured together."""
    return statistics.median(one / other for one, other in zip(times["plain"], times["plugged"], strict=True))


def watched(worker: Any) -> list[float]:
    """Seconds that each step takes to find out what it is to us: for requests of text alone that is all."""
    spent: list[float] = []
    original = type(worker)._step.__get__(worker)

    def step() -> Any:
        begin = time.process_time()
        try:
            return original()
        finally:
            spent.append(time.process_time() - begin)

    worker._step = step
    return spent


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=33, help="tokens generated for tokens per second")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--loads", nargs="+", default=["1x1", "8x1", "1x4", "8x0"], help="requests x pictures")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        folder = save_llava(Path(root), "llama", HIDDEN, LAYERS, GRID)
        plain, plugged = (engine(folder, given.dtype, plugged) for plugged in (False, True))
        found = []
        for text in given.loads:
            load = Load(*map(int, text.split("x")))
            for method in METHODS if load.pictures else list(METHODS)[1:2]:
                found.append(compare(plain, plugged, load, method, given.rounds, given.new))
                print(json.dumps(found[-1]), flush=True)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
